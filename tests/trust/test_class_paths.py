"""A config names classes of a list, and nothing else: no other class, no function, no address."""

from __future__ import annotations

import http.server
import importlib
import inspect
import pkgutil
import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from command_lines import parse_training
from jsonargparse import ArgumentError, ArgumentParser

from mmtune.cli.shared.trusted_classes import CLASSES, class_names, objections
from mmtune.cli.shared.trusted_code import restrict_parsers, trusted_packages
from mmtune.common.errors import UserError

WALKED = ("lightning", "torch", "transformers", "peft", "datasets", "jsonargparse", "accelerate", "fsspec", "timm",
          "open_clip", "torchmetrics", "numpy", "PIL", "yaml", "mmtune")  # fmt: skip


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module whose import is seen by the file `ran`."""
    name = f"strange_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
        "from lightning.pytorch.callbacks import Callback\n"
        "class Own(Callback):\n    def __init__(self, hook=None):\n        pass\ndef function(*_):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def command() -> Any:
    """The command line of `mmtune fit`, whose parser takes a second to make."""
    return parse_training(["fit", *NEEDED])


NEEDED = ["--model.language=a", "--data.train.text=[a]"]
Parse = Callable[..., Any]


@pytest.fixture
def parse(command: Any, tmp_path: Path) -> Parse:
    """Parses a config, and looks at what it names, as the command does; nothing is made."""

    def parse(config: str, *flags: str) -> Any:
        file = tmp_path / "config.yaml"
        file.write_text(config)
        arguments = ["fit", "--config", str(file), *NEEDED, *flags]
        restrict_parsers([*class_names(), *trusted_packages(arguments)])
        command.parse_arguments(command.parser, arguments)
        return command.config.fit

    return parse


def everything_importable() -> list[str]:
    """Every class and function by every dotted name that loaded modules know it by; modules that lie unloaded."""
    found = set()
    for name, module in list(sys.modules.items()):
        inner = vars(module) if inspect.ismodule(module) else {}
        for attribute, value in list(inner.items()):
            if inspect.ismodule(value):  # os of lightning.pytorch.callbacks.model_checkpoint
                found |= {f"{name}.{attribute}.{last}" for last in ("system", "load", "Popen", "run", "function")}
            elif callable(value):
                found.add(f"{name}.{attribute}")
                if inspect.isclass(value):  # its methods, and what is reached through them
                    found |= {
                        f"{name}.{attribute}.{last}" for last in ("__init__", "from_pretrained", "__subclasses__")
                    }
    for package in WALKED:
        paths = list(importlib.import_module(package).__path__)
        found |= {f"{m.name}.main" for m in pkgutil.iter_modules(paths, f"{package}.")}
    found |= {f"{name}.run" for name in sys.stdlib_module_names}
    return sorted(name for name in found if all(part.isidentifier() for part in name.split(".")))


@pytest.mark.usefixtures("command")  # with the modules that a run has loaded
def test_nothing_importable_outside_the_list_may_be_named() -> None:
    names, listed = everything_importable(), class_names()
    assert len(names) > 50_000
    for name in names:
        assert bool(list(objections({"x": [{"class_path": name}]}))) == (name not in listed), name
    assert set(listed.values()) == set(CLASSES)
    for name, kind in listed.items():
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute) is kind


@pytest.mark.usefixtures("command")
def test_the_parser_imports_nothing_outside_the_list() -> None:
    restrict_parsers(class_names())
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--kind", type=type)
    listed = class_names()
    names = [n for n in everything_importable() if n not in listed and n.rpartition(".")[0] not in listed]
    loaded = set(sys.modules)
    for name in random.Random(0).sample(names, 1_000):
        with pytest.raises(ArgumentError, match="not allowed"):
            parser.parse_args([f"--kind={name}"])
    assert set(sys.modules) == loaded


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_arguments_of_the_list_are_there_and_take_no_functions(kind: type) -> None:
    parameters = inspect.signature(kind).parameters
    others = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in CLASSES[kind].split():
        assert name in parameters or others, name
        if name in parameters:
            written = str(parameters[name].annotation)
            assert not any(word in written for word in ("Callable", "type[", "object", "_POLICY")), name
    assert not inspect.isabstract(kind)


ELASTIC = "{class_path: torch.distributed.launcher.api.elastic_launch, init_args: {entrypoint: FOLDER/program, config: "
ELASTIC += "{class_path: torch.distributed.launcher.api.LaunchConfig, init_args: {min_nodes: 1, max_nodes: 1, "
ELASTIC += "nproc_per_node: 1}}}}"
POPEN = "{class_path: subprocess.Popen, init_args: {args: [touch, FOLDER/ran]}}"
HOSTILE = {
    "a launcher of programs": f"callbacks: [{{class_path: LambdaCallback, init_args: {{on_fit_start: {ELASTIC}}}}}]",
    "a callback that takes functions": "callbacks: LambdaCallback",
    "another": "callbacks: [{class_path: ThroughputMonitor, init_args: {batch_size_fn: torch.hub.load}}]",
    "one that deletes": "callbacks: [{class_path: OnExceptionCheckpoint, init_args: {dirpath: FOLDER}}]",
    "one that sets attributes": "callbacks: [{class_path: BatchSizeFinder, init_args: {batch_arg_name: trainer}}]",
    "a hook": "strategy: {class_path: DDPStrategy, init_args: {ddp_comm_hook: NAME.function}}",
    "a hook of torch's": "strategy: {class_path: DDPStrategy, init_args: {ddp_comm_hook: "
    "torch.distributed.algorithms.ddp_comm_hooks.default_hooks.fp16_compress_hook}}",
    "a hook that is a method of a class on the list": "strategy: {class_path: DDPStrategy, init_args: {ddp_comm_hook: "
    "lightning.pytorch.callbacks.EarlyStopping.on_validation_end}}",
    "a state": f"strategy: {{class_path: DDPStrategy, init_args: {{ddp_comm_state: {POPEN}}}}}",
    "further arguments": f"strategy: {{class_path: DDPStrategy, dict_kwargs: {{mixed_precision: {POPEN}}}}}",
    "a policy": "strategy: {class_path: FSDPStrategy, init_args: {auto_wrap_policy: NAME.function}}",
    "a class for a type": "strategy: {class_path: FSDPStrategy, init_args: {activation_checkpointing: NAME.Own}}",
    "classes for a type": "strategy: {class_path: FSDPStrategy, init_args: {activation_checkpointing: [NAME.Own]}}",
    "an environment": "strategy: {class_path: DDPStrategy, init_args: {cluster_environment: NAME.Own}}",
    "through a module of ours": "callbacks: mmtune.cli.train.torch.hub.load",
    "through a module of theirs": "callbacks: lightning.pytorch.callbacks.model_checkpoint.os.system",
    "a part of a class on the list": "callbacks: [lightning.pytorch.callbacks.EarlyStopping.mode_dict]",
    "a base class": "callbacks: {class_path: lightning.pytorch.callbacks.Callback}",
    "an accelerator": "accelerator: {class_path: NAME.Own}",
    "a profiler": "profiler: {class_path: NAME.Own}",
    "functions of a profiler": "profiler: {class_path: PyTorchProfiler, dict_kwargs: {on_trace_ready: "
    "{class_path: NAME.Own}}}",
    "a plugin": "plugins: [NAME.Own]",
    "a plugin within": "plugins: [{class_path: AsyncCheckpointIO, init_args: {checkpoint_io: NAME.Own}}]",
    "settings of another library": "logger: {class_path: WandbLogger, dict_kwargs: {settings: {x_executable: sh}}}",
    "source files to upload": "logger: {class_path: WandbLogger, dict_kwargs: {save_code: true}}",
    "code to upload": "logger: {class_path: CometLogger, dict_kwargs: {log_code: true}}",
    "a file to write into": f"callbacks: [{{class_path: RichProgressBar, init_args: {{console_kwargs: {POPEN}}}}}]",
    "where anything goes": f"logger: {{class_path: MLFlowLogger, init_args: {{tags: {POPEN}}}}}",
    "settings of deepspeed": "strategy: {class_path: DeepSpeedStrategy, init_args: {config: {class_path: NAME.Own}}}",
    "a file of settings": "strategy: {class_path: DeepSpeedStrategy, init_args: {config: FOLDER/config.yaml}}",
}


@pytest.mark.parametrize("config", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_config_is_refused_in_one_line(config: str, outside: str, parse: Parse, tmp_path: Path) -> None:
    written = config.replace("NAME", outside).replace("FOLDER", str(tmp_path))
    with pytest.raises(UserError, match=r"config\.yaml: trainer\.\w+.*would (run|give) ") as refusal:
        parse(f"trainer: {{{written}}}")
    assert "--trust_code" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("group", ["data: {train: {class_path: NAME.Own}}", "data: {train: NAME.Own}"])
def test_a_group_names_no_class(group: str, outside: str, parse: Parse, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml: data.train: would run .*--trust_code"):
        parse(group.replace("NAME", outside))
    assert not (tmp_path / "ran").exists()


WANTED = {
    "callbacks": "callbacks: [{class_path: EarlyStopping, init_args: {monitor: val_loss}}, LearningRateMonitor, "
    "lightning.pytorch.callbacks.device_stats_monitor.DeviceStatsMonitor, "
    "{class_path: RichProgressBar, init_args: {theme: {description: red}}}]",
    "a logger": "logger: {class_path: CSVLogger, init_args: {save_dir: FOLDER}}",
    "further arguments": "logger: {class_path: TensorBoardLogger, init_args: {save_dir: FOLDER}, dict_kwargs: "
    "{filename_suffix: a}}",
    "a strategy": "strategy: {class_path: DDPStrategy, init_args: {find_unused_parameters: true, "
    "cluster_environment: LightningEnvironment, checkpoint_io: TorchCheckpointIO}}",
    "a plugin": "plugins: [{class_path: SLURMEnvironment, init_args: {auto_requeue: false, requeue_signal: SIGUSR1}}]",
    "a profiler": "profiler: {class_path: SimpleProfiler, init_args: {dirpath: FOLDER, filename: a}}",
}


@pytest.mark.parametrize("config", WANTED.values(), ids=WANTED)
def test_what_a_run_may_want_is_parsed_and_can_be_written_and_read_again(
    config: str, command: Any, parse: Parse, tmp_path: Path
) -> None:
    first = parse(f"trainer: {{{config.replace('FOLDER', str(tmp_path))}}}")
    written = yaml.safe_load(command.parser.dump(command.config, skip_unset=False))["fit"]
    assert parse(yaml.safe_dump({"trainer": written["trainer"]})).trainer == first.trainer


def test_the_user_s_own_code_is_trusted_with_what_it_is_given_and_only_once(outside: str, parse: Parse) -> None:
    own = f"trainer: {{callbacks: [{{class_path: {outside}.Own, init_args: {{hook: HOOK}}}}]}}"
    parse(own.replace("HOOK", "null"), "--trust_code", outside)
    with pytest.raises(UserError, match=r"callbacks\S*: would run subprocess\.Popen"):
        parse(own.replace("HOOK", "{class_path: subprocess.Popen}"), "--trust_code", outside)
    with pytest.raises(UserError, match=r"trainer\.callbacks: would run .*Own"):  # a later command of this process
        parse(own.replace("HOOK", "null"))


# Addresses


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a server, and what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[EarlyStopping]" if "callbacks" in self.path else b"{stage: align}")

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


@pytest.mark.parametrize(
    "config",
    ["trainer: {callbacks: URL/callbacks.yaml}", "model: URL/model.yaml", "data: URL/model.yaml",
     "model: {vision: URL/model.yaml}", "trainer: URL/model.yaml", "trainer: {callbacks: 'simplecache::URL/callbacks'}",
     "model: memory://model.yaml", "model: {lora: memory://model.yaml}", "model: 'zip://model.yaml::FOLDER/a.zip'"],
)  # fmt: skip
def test_configs_within_a_config_are_local_files(
    config: str, served: tuple[str, list[str]], parse: Parse, tmp_path: Path
) -> None:
    with fsspec.open("memory://model.yaml", "w") as stream:
        stream.write("{stage: align}")
    address, asked = served
    with pytest.raises(UserError, match=r"config\.yaml: \S+ \S+: configs are read from local files alone"):
        parse(config.replace("URL", address).replace("FOLDER", str(tmp_path)))
    assert not asked


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/a", "s3://bucket/a", "simplecache::s3://b/a", "registry:a:1"])
@pytest.mark.parametrize(
    ("config", "key"),
    [
        ("ckpt_path: 'URL'", "ckpt_path"),
        (
            "trainer: {logger: {class_path: CSVLogger, init_args: {save_dir: 'URL'}}}",
            "trainer.logger.init_args.save_dir",
        ),
        ("trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {dirpath: 'URL'}}]}", "trainer.callbacks"),
        ("trainer: {default_root_dir: 'URL'}", "trainer.default_root_dir"),
    ],
)
def test_an_address_counts_on_the_command_line_alone(config: str, key: str, address: str, parse: Parse) -> None:
    with pytest.raises(UserError, match=rf"config\.yaml: {key}\S* {address}: an address counts on the command line"):
        parse(config.replace("URL", address))
    assert parse("{seed_everything: 1}", f"--ckpt_path={address}").ckpt_path == address


def test_a_logger_may_send_to_the_server_that_its_config_names(parse: Parse) -> None:
    uri = "{class_path: MLFlowLogger, init_args: {tracking_uri: 'http://localhost:5000'}}"
    assert parse(f"trainer: {{logger: {uri}}}").trainer.logger
