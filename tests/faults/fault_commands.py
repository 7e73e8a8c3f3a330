"""The commands that are attacked, and what they leave behind, as far as it must be the same every time."""

from __future__ import annotations

import csv
import hashlib
import json
import sqlite3
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fault_processes import Prepare
from fault_world import comparison

_COUNTED = ("steps", "samples", "tokens", "params")
_OF_THE_CLOCK = {"created", "seconds", "key", "peak_memory_bytes"}
_NOT_COMPARED = {"checkpoints", "plots", "tables", "report.html", "lock"}


@dataclass(frozen=True)
class Command:
    """A command in a place of its own: a folder with `out`, what it makes, and `cache`.

    Attributes:
        name: for people.
        arguments: of a world and a place.
        area: the part of the place whose disk operations are counted: `out`, `cache`, or nothing for both.
        prepare: of a world, what is done in the process before.
        finished: what a message says when it is the result that is in the way.
    """

    name: str
    arguments: Callable[[Path, Path], list[str]]
    area: str = ""
    prepare: Callable[[Path], Prepare] | None = None
    finished: str = "holds a finished run"


def training(world: Path) -> list[list[str]]:
    """The commands that make the world's trained model: alignment, then adapters on text."""
    text = [f'--data.train.text=["{world}/text.jsonl"]', f"--model.base={world}/aligned", f"--out={world}/run"]
    return [
        [*_fit_photos(world, world), f"--out={world}/aligned"],
        ["fit", "--config", f"{world}/tune.yaml", *text],
    ]


def _fit(world: Path, place: Path) -> list[str]:
    flags = ["--model.template=chatml", "--model.learning_rate=0.01", "--model.lora.r=4", "--model.lora.alpha=8"]
    flags += ["--data.max_length=256", "--data.pack_rows=4", "--trainer.accelerator=cpu", "--trainer.max_epochs=2"]
    flags += ["--trainer.enable_progress_bar=false", "--trainer.logger=false", "--checkpoint_every=4"]
    return ["fit", f'--data.train.text=["{world}/text.jsonl"]', f"--out={place}/out", *flags]


def _fit_text(world: Path, place: Path) -> list[str]:
    return [*_fit(world, place), f"--model.language={world}/llama", "--model.lora.dropout=0.1"]


def _fit_gguf(world: Path, place: Path) -> list[str]:
    return [*_fit(world, place), f"--model.language={world}/tiny.gguf", "--trainer.max_steps=3"]


def _fit_photos(world: Path, place: Path) -> list[str]:
    rows = [f'--data.train.visual=["{world}/visual.json"]', f"--data.train.image_root={world}/images"]
    return ["fit", "--config", f"{world}/align.yaml", *rows, "--checkpoint_every=4", f"--out={place}/out"]


def _evaluate(world: Path, place: Path) -> list[str]:
    given = ["--model", f"{world}/run", "--suite", f"{world}/both.yaml", "--data-root", str(world)]
    return ["eval", *given, "--device", "cpu", "--out", f"{place}/out"]


def _export(world: Path, place: Path) -> list[str]:
    return ["export", f"{world}/run", "--to", "merged", "--max-shard-size", "100KB", "--out", f"{place}/out"]


def _reproduce(world: Path, place: Path) -> list[str]:
    return ["reproduce", "--preset", "tiny", "--data-root", str(world), "--out", f"{place}/out"]


def _small_comparison(world: Path) -> Prepare:
    def prepare() -> None:
        from mmtune.experiments.reproduce.presets import PRESETS

        PRESETS["tiny"] = comparison(world)

    return prepare


FIT = Command("`fit`", _fit_text, "out")
TOKENS = Command("`fit`, token cache", _fit_text, "cache/tokens")
PHOTOS = Command("`fit`, photo features", _fit_photos, "cache/features")
GGUF = Command("`fit`, GGUF conversion", _fit_gguf, "cache/gguf")
EVALUATE = Command("`eval`", _evaluate, "out")
EXPORT = Command("`export`", _export, "", finished="is there and not an empty folder")
REPRODUCE = Command("`reproduce`", _reproduce, "out", _small_comparison, finished="")


def results(place: Path) -> dict[str, str]:
    """A digest of everything that a command has left in its place, but for times and the place's own name."""
    files = (file for file in sorted(place.rglob("*")) if file.is_file() and not _is_temporary(file, place))
    found = {str(file.relative_to(place)): file for file in files}
    return {name: _digest(file, place) for name, file in found.items() if not _NOT_COMPARED & set(Path(name).parts)}


def strays(place: Path) -> list[str]:
    """What lies in the place under a temporary name."""
    found = (path for path in place.rglob("*") if _is_temporary(path, place) and path.name != ".lock")
    return sorted(str(path.relative_to(place)) for path in found)


def negative_durations(place: Path) -> list[str]:
    """Seconds in the results that no clock can have measured."""
    found = []
    for file in [*place.rglob("ledger.json"), *place.rglob("results.json")]:
        for name, value in _numbers(json.loads(file.read_text())):
            if name in ("seconds", "wall_s", "train_s") and not 0 <= value < 3600:
                found.append(f"{file.relative_to(place)}: {name} {value}")
    return found


def differences(found: dict[str, str], expected: dict[str, str]) -> str:
    """In what two sets of results differ, in words; empty where they are the same."""
    names = [f"{n} is missing" for n in expected if n not in found]
    names += [f"{n} should not be there" for n in found if n not in expected]
    names += [f"{n} differs" for n in expected if n in found and found[n] != expected[n]]
    return "; ".join(names[:4])


def _is_temporary(path: Path, place: Path) -> bool:
    return any(
        part.startswith(".") or part.endswith((".part", "-wal", "-shm", "-journal"))
        for part in path.relative_to(place).parts
    )


def _digest(file: Path, place: Path) -> str:
    if file.name == "ledger.json":
        ledger = json.loads(file.read_text())
        # photos that a killed run has put through the tower are stored, and no cost of the next run
        flops = {name: count for name, count in ledger["flops"].items() if name != "tower"}
        content: Any = [flops, *(ledger[name] for name in _COUNTED)]
    elif file.name == "metrics.csv":
        with file.open(newline="") as stream:
            content = [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in csv.DictReader(stream)]
    elif file.name == "results.json":
        content = _without_times(json.loads(file.read_text()))
    elif file.suffix == ".sqlite":
        with closing(sqlite3.connect(file)) as connection:
            content = connection.execute("SELECT row, answer FROM answers ORDER BY answer, row").fetchall()
    elif file.suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            content = [[name, hashlib.sha256(archive.read(name)).hexdigest()] for name in archive.namelist()]
    else:
        own = file.read_bytes().replace(str(place).encode(), b"PLACE")
        if file.suffix == ".arrow" and hashlib.sha256(own).hexdigest() != file.stem:
            return "damaged"
        return hashlib.sha256(own).hexdigest()
    text = json.dumps(content, sort_keys=True).replace(str(place), "PLACE")
    return hashlib.sha256(text.encode()).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in _OF_THE_CLOCK}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _numbers(value: Any, name: str = "") -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in _numbers(item, key)]
    return [(name, value)] if isinstance(value, (int, float)) else []
