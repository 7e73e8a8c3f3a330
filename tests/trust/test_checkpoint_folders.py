"""Checkpoints of every kind, however they are found, run no code; what is damaged or of another kind is named."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mmtune.cli.main import main
from mmtune.common.errors import UserError
from mmtune.models.interop.weights import read_tensors
from mmtune.training.checkpoint_io import WholeCheckpoints
from mmtune.training.checkpoint_reading import guard_checkpoints
from mmtune.training.plain_pickles import CodeInPickleError, plain_pickles

LIGHTNING = {"pytorch-lightning_version": "2.6.0"}


class Runs:
    """A pickle of it runs code when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


@pytest.fixture
def ran(tmp_path: Path) -> Iterator[Path]:
    """A file that hostile checkpoints make; it is not there at the end."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A mesh of one process."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path_factory.mktemp('rendezvous') / 'file'}", rank=0, world_size=1
    )
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


class Tiny(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


@pytest.fixture
def divided(alone: Any, monkeypatch: pytest.MonkeyPatch) -> ModelParallelStrategy:
    """A strategy with a model divided among one process, which loads checkpoints in parts."""
    strategy = ModelParallelStrategy()
    module = Tiny()
    fully_shard(module, mesh=alone)
    strategy.model = module
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    strategy.optimizers = [optimizer]
    monkeypatch.setattr(ModelParallelStrategy, "lightning_module", property(lambda self: module))
    monkeypatch.setattr(ModelParallelStrategy, "broadcast", lambda self, obj, src=0: obj)
    guard_checkpoints(strategy)
    return strategy


@pytest.fixture
def folder(divided: ModelParallelStrategy, tmp_path: Path) -> Path:
    """A checkpoint in parts, as that strategy writes it."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

    assert divided.model is not None
    state = {
        "state_dict": get_model_state_dict(divided.model),
        "optimizer_0": get_optimizer_state_dict(divided.model, divided.optimizers[0]),
    }
    target = tmp_path / "checkpoints" / "last.ckpt"
    dcp.save(state, checkpoint_id=target)
    torch.save({**LIGHTNING, "epoch": 3}, target / "meta.pt")
    return target


def hostile_index(folder: Path, target: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Runs(target)))


def hostile_rest(folder: Path, target: Path) -> None:
    torch.save({**LIGHTNING, "own": Runs(target)}, folder / "meta.pt")


def hostile_part(folder: Path, target: Path) -> None:
    """In place of a number of the optimizer, which torch.distributed.checkpoint unpickles with everything allowed."""
    index = pickle.loads((folder / ".metadata").read_bytes())
    key = next(k for k in index.storage_data if k.fqn.endswith("betas") or k.fqn.endswith("lr"))
    place = index.storage_data[key]
    evil = folder / "evil.distcp"
    torch.save(Runs(target), evil)
    place.relative_path, place.offset, place.length = evil.name, 0, evil.stat().st_size
    (folder / ".metadata").write_bytes(pickle.dumps(index))


HOSTILE = [hostile_index, hostile_rest, hostile_part]


@pytest.mark.parametrize("make", HOSTILE)
def test_no_code_of_a_checkpoint_in_parts_is_run(
    make: Callable[[Path, Path], None], divided: ModelParallelStrategy, folder: Path, ran: Path
) -> None:
    make(folder, ran)
    with pytest.raises(UserError, match=r"last\.ckpt: (cannot be resumed from|a damaged checkpoint)"):
        divided.load_checkpoint(folder)


@pytest.mark.parametrize("make", HOSTILE)
def test_it_would_run_without_the_guard(
    make: Callable[[Path, Path], None], divided: ModelParallelStrategy, folder: Path, tmp_path: Path
) -> None:
    """The tests above show something: the same files run code where nothing looks."""
    make(folder, tmp_path / "it_ran")
    if make is hostile_rest:
        torch.load(folder / "meta.pt", weights_only=False)
    else:
        with contextlib.suppress(BaseException):
            ModelParallelStrategy.load_checkpoint(divided, folder, weights_only=True)
    assert (tmp_path / "it_ran").exists()


def test_a_checkpoint_in_parts_is_resumed_from(divided: ModelParallelStrategy, folder: Path) -> None:
    assert divided.model is not None
    [group] = divided.optimizers[0].param_groups
    before = divided.model.layer.weight.to_local().clone()  # type: ignore[union-attr, operator]
    with torch.no_grad():
        divided.model.layer.weight.zero_()  # type: ignore[union-attr, operator]
    group["lr"] = 7.0
    assert divided.load_checkpoint(folder)["epoch"] == 3
    assert torch.equal(divided.model.layer.weight.to_local(), before)  # type: ignore[union-attr, operator]
    assert divided.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3)


def test_what_leaves_the_folder_or_is_cut_off_is_refused(divided: ModelParallelStrategy, folder: Path) -> None:
    index = (folder / ".metadata").read_bytes()
    [part] = folder.glob("*.distcp")
    whole = part.read_bytes()

    def refused(what: str) -> None:
        with pytest.raises(UserError, match=rf"last\.ckpt: a damaged checkpoint: .*{what}"):
            divided.load_checkpoint(folder)

    part.write_bytes(whole[:-20])
    refused("cut off")
    part.rename(folder.parent / part.name)
    refused("is missing")
    part.symlink_to(folder.parent / part.name)
    refused("or a link")
    for path in ("../part", "/etc/passwd", "a/b"):
        changed = pickle.loads(index)
        for place in changed.storage_data.values():
            place.relative_path = path
        (folder / ".metadata").write_bytes(pickle.dumps(changed))
        refused("outside of the folder")
    (folder / ".metadata").unlink()
    refused("is missing")


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> SingleDeviceStrategy:
    strategy = SingleDeviceStrategy("cpu", checkpoint_io=WholeCheckpoints())
    guard_checkpoints(strategy)
    return strategy


def test_a_folder_for_a_file_and_a_pipe_are_refused(one_device: SingleDeviceStrategy, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, problem in (("folder", "a folder"), ("pipe", "no such file"), ("none", "no such file")):
        with pytest.raises(UserError, match=rf"--ckpt_path .*{name}: {problem}"):
            one_device.load_checkpoint(tmp_path / name)


def test_links_lead_no_further_than_their_content(one_device: SingleDeviceStrategy, tmp_path: Path, ran: Path) -> None:
    torch.save({**LIGHTNING, "own": Runs(ran)}, tmp_path / "real.ckpt")
    (tmp_path / "last.ckpt").symlink_to(tmp_path / "real.ckpt")
    with pytest.raises(UserError, match="a damaged checkpoint"):
        one_device.load_checkpoint(tmp_path / "last.ckpt")
    # nor is a file elsewhere written over through a link that lies where a checkpoint is written first
    (tmp_path / "own.txt").write_text("mine")
    (tmp_path / "new.ckpt.part").symlink_to(tmp_path / "own.txt")
    WholeCheckpoints().save_checkpoint({**LIGHTNING}, tmp_path / "new.ckpt")
    assert (tmp_path / "own.txt").read_text() == "mine"
    assert not (tmp_path / "new.ckpt").is_symlink()


def test_the_lazy_reader_of_fsdp_runs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ran: Path) -> None:
    """Lightning reads one file with a pickle reader of its own, in which everything is allowed."""
    strategy = FSDPStrategy()
    strategy.model = Tiny()
    monkeypatch.setattr(FSDPStrategy, "lightning_module", property(lambda self: Tiny()))
    monkeypatch.setattr(FSDPStrategy, "broadcast", lambda self, obj, src=0: obj)
    guard_checkpoints(strategy)
    torch.save({**LIGHTNING, "state_dict": Runs(ran)}, tmp_path / "full.ckpt")
    with pytest.raises(UserError, match=r"full\.ckpt: cannot be resumed from.*(touch|getattr|PosixPath)"):
        strategy.load_checkpoint(tmp_path / "full.ckpt")


def test_what_deepspeed_reads_with_everything_allowed_is_tensors_alone(tmp_path: Path, ran: Path) -> None:
    """DeepSpeed's loader asks torch for pickles with code; see its torch_checkpoint_engine."""
    torch.save({"own": Runs(ran)}, tmp_path / "states.pt")
    torch.save({"own": torch.ones(2)}, tmp_path / "plain.pt")
    with plain_pickles():
        assert torch.load(tmp_path / "plain.pt", weights_only=False)["own"].sum() == 2
        with pytest.raises(pickle.UnpicklingError, match="Weights only"):
            torch.load(tmp_path / "states.pt", weights_only=False)


def test_the_records_of_deepspeed_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inner = ("runtime", "runtime.fp16", "runtime.fp16.loss_scaler", "runtime.zero", "runtime.zero.config", "utils")
    for name in ("deepspeed", *(f"deepspeed.{name}" for name in (*inner, "utils.tensor_fragment"))):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    made = type("LossScaler", (), {"__module__": "deepspeed.runtime.fp16.loss_scaler"})
    sys.modules[made.__module__].LossScaler = made  # type: ignore[attr-defined]
    scaler = made()
    scaler.cur_scale = 4.0  # type: ignore[attr-defined]
    torch.save({"loss_scaler": scaler}, tmp_path / "states.pt")
    with plain_pickles():
        assert torch.load(tmp_path / "states.pt", weights_only=False)["loss_scaler"].cur_scale == 4.0


@pytest.mark.parametrize(
    "named",
    ["os.system", "builtins.eval", "builtins.getattr", "builtins.__import__", "subprocess.Popen", "torch.load",
     "torch.storage._load_from_bytes", "torch.hub.load", "torch.jit.load", "pathlib.Path.touch", "functools.partial",
     "torch.distributed.checkpoint.metadata.Metadata.__init__.__globals__", "numpy.load", "importlib.import_module",
     "mmtune.cli.main.main", "operator.attrgetter"],
)  # fmt: skip
def test_a_pickle_names_no_code(named: str) -> None:
    modules = [named.rpartition(".")[::2], ("torch.distributed.checkpoint.metadata", named.rpartition("Metadata")[2])]
    for module, name in modules:
        data = pickle.dumps(0, 4)[:2] + b"\x8c" + bytes([len(module)]) + module.encode()
        data += b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
        with plain_pickles(), pytest.raises(CodeInPickleError):
            pickle.loads(data)


def test_the_guard_is_over_with_its_block() -> None:
    with plain_pickles():
        pass
    assert pickle.loads(pickle.dumps(shutil.copy)) is shutil.copy


# Roads by which a run comes to a checkpoint


SLURM = {"NTASKS": "1", "JOB_NAME": "fit", "JOB_ID": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
ROADS = {
    "found": ("fit", "checkpoints/last.ckpt", None),
    "found without the last": ("fit", "checkpoints/previous.ckpt", None),
    "named": ("fit", "own.ckpt", "PLACE"),
    "hpc": ("fit", "hpc_ckpt_1.ckpt", "hpc"),
    "found by SLURM": ("fit", "hpc_ckpt_1.ckpt", None),
    "last": ("fit", "checkpoints/last.ckpt", "last"),
    "validate": ("validate", "own.ckpt", "PLACE"),
    "validate hpc": ("validate", "hpc_ckpt_1.ckpt", "hpc"),
    "validate found by SLURM": ("validate", "hpc_ckpt_1.ckpt", None),
}


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("road", ROADS)
def test_every_road_to_a_checkpoint_is_guarded(
    road: str,
    kind: str,
    flags: list[str],
    tmp_path: Path,
    ran: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, name, word = ROADS[road]
    place = tmp_path / "run" / name
    place.parent.mkdir(parents=True)
    if kind == "file":
        torch.save({**LIGHTNING, "state_dict": {}, "own": Runs(ran)}, place)
    else:
        place.mkdir()
        hostile_index(place, ran)
        hostile_rest(place, ran)
    if "SLURM" in road:
        for variable, value in SLURM.items():
            monkeypatch.setenv(f"SLURM_{variable}", value)
    given = [f"--ckpt_path={place if word == 'PLACE' else word}"] if word else []
    if command == "validate":
        given.append(f'--data.validation=["{tmp_path / "a.jsonl"}"]')
    code = main([command, *flags, *given])
    said = capsys.readouterr().err
    if (kind, name) == ("folder", "checkpoints/previous.ckpt"):
        assert code == 0  # only files are kept so
        return
    assert code == 2
    assert place.name in said.splitlines()[-1]


# Archives that are larger inside


def compressed(source: Path, target: Path) -> Path:
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    return target


def test_compressed_checkpoints_and_weights_are_refused(one_device: SingleDeviceStrategy, tmp_path: Path) -> None:
    torch.save({**LIGHTNING, "state_dict": {"a": torch.zeros(1000)}}, tmp_path / "whole.ckpt")
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.bin")
    assert read_tensors(tmp_path / "whole.bin").keys() == {"a"}
    bomb = compressed(tmp_path / "whole.ckpt", tmp_path / "bomb.ckpt")
    with pytest.raises(UserError, match=r"bomb\.ckpt: .*compressed"):
        one_device.load_checkpoint(bomb)
    with pytest.raises(UserError, match=r"bomb\.bin: is compressed"):
        read_tensors(compressed(tmp_path / "whole.bin", tmp_path / "bomb.bin"))


# What a run deletes
