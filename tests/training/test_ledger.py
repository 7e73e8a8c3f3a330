"""What the ledger says beyond counts: speed, utilisation, energy."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmtune.training.callbacks.ledger import device_peak

Fit = Callable[..., int]
Read = Callable[[Path, str], Any]

# as the package looks to us: every look at the meter finds another thousandth of a kilowatt-hour
STAND_IN = """
import types
made = []
class OfflineEmissionsTracker:
    def __init__(self, *, output_handlers, **options):
        assert options["save_to_file"] is False and options["save_to_api"] is False
        self.handlers, self.kwh, self.running = output_handlers, 0.0, False
        made.append(self)
    def start(self):
        self.running = True
    def flush(self):
        assert self.running
        self.kwh += 0.001
        for handler in self.handlers:
            handler.out(types.SimpleNamespace(energy_consumed=self.kwh), None)
    def stop(self):
        self.running = False
"""


@pytest.fixture
def flags(text_rows: Path, visual_rows: Path, vision_flags: list[str], lora_flags: list[str]) -> list[str]:
    return [
        f"--data.train.text=[{text_rows}]",
        f"--data.train.visual=[{visual_rows}]",
        "--data.pack_rows=4",
        *vision_flags,
        *lora_flags,
    ]


@pytest.fixture
def codecarbon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "codecarbon.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "codecarbon", raising=False)
    yield lambda: sys.modules["codecarbon"].made
    sys.modules.pop("codecarbon", None)


def without_codecarbon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmtune.training.callbacks.energy.EnergyMeter.start", lambda meter: None)


def test_speed_by_kind_and_utilisation(
    fit: Fit, flags: list[str], tmp_path: Path, read_run: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmtune.training.callbacks.ledger.device_peak", lambda device, dtype: 1e9)
    without_codecarbon(monkeypatch)
    assert fit(tmp_path / "run", *flags) == 0
    ledger = read_run(tmp_path / "run", "ledger.json")
    seconds = ledger["train_s"]
    for kind in ("text", "image"):
        assert ledger["tokens"][kind] > 0
        assert ledger["tokens_per_s"][kind] == pytest.approx(ledger["tokens"][kind] / seconds, rel=0.01)
    assert ledger["peak_flops_per_s"] == 1e9
    # the photos' features were stored before the steps, or by an earlier run
    in_steps = ledger["flops"]["language"] + ledger["flops"]["projector"]
    assert ledger["model_flop_utilisation"] == pytest.approx(in_steps / seconds / 1e9, rel=0.01, abs=1e-4)
    assert ledger["energy_kwh"] is None


def test_the_peak_is_measured_once_and_outside_the_steps(
    fit: Fit, flags: list[str], tmp_path: Path, read_run: Read
) -> None:
    device_peak.cache_clear()  # another test of this process has measured it
    assert fit(tmp_path / "run", *flags, "--trainer.max_steps=1") == 0
    ledger = read_run(tmp_path / "run", "ledger.json")
    assert ledger["peak_flops_per_s"] > 1e8
    assert 0 < ledger["model_flop_utilisation"] < 1
    assert ledger["wall_s"] - ledger["train_s"] > 0.4


def test_energy_adds_up_over_resumes(
    fit: Fit, flags: list[str], tmp_path: Path, read_run: Read, codecarbon: Callable[[], list[Any]]
) -> None:
    run = tmp_path / "run"
    assert fit(run, *flags, "--checkpoint_every=5") == 0
    saves = 12 // 5  # of the run's steps, each with a look at the meter
    assert read_run(run, "ledger.json")["energy_kwh"] == pytest.approx(0.001 * (saves + 1))
    shutil.rmtree(run / "model")
    assert fit(run, *flags, "--checkpoint_every=5") == 0  # goes on from step 10, and looks at its end
    assert read_run(run, "ledger.json")["energy_kwh"] == pytest.approx(0.001 * (saves + 1))
    assert not any(tracker.running for tracker in codecarbon())


def test_a_part_without_the_meter_leaves_no_figure(
    fit: Fit, flags: list[str], tmp_path: Path, read_run: Read, codecarbon: Callable[[], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        without_codecarbon(patched)
        assert fit(run, *flags, "--checkpoint_every=5") == 0
    shutil.rmtree(run / "model")
    assert fit(run, *flags, "--checkpoint_every=5") == 0
    assert codecarbon()
    assert read_run(run, "ledger.json")["energy_kwh"] is None


def test_the_meter_stops_where_training_fails(
    fit: Fit, flags: list[str], tmp_path: Path, codecarbon: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("mmtune.training.module.InstructionTuning.training_step", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        fit(tmp_path / "run", *flags)
    assert codecarbon()
    assert not any(tracker.running for tracker in codecarbon())


def test_the_real_meter_reads_something_and_says_nothing(
    fit: Fit, flags: list[str], tmp_path: Path, read_run: Read, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip("codecarbon")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fit(tmp_path / "run", *flags) == 0
    assert 0 < read_run(tmp_path / "run", "ledger.json")["energy_kwh"] < 0.01
    assert "codecarbon" not in "".join(capsys.readouterr())
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("run", ".cache")] == []
