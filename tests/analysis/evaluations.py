"""Folders as `mmtune eval` leaves them, written directly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

HOSTILE = "<script>alert(1)</script> [bold]x[/] \x1b[31mred\x1b]0;t\x07 \ud800 \u202eabc \x00\r&quot;'"


def sample(number: int, score: float, **fields: Any) -> dict[str, Any]:
    """One line of samples/<task>.jsonl."""
    said = "yes" if score else "no"
    return {
        "id": number,
        "prompt": f"Question {number}?",
        "response": f'{said}"',
        "prediction": said,
        "target": "yes",
        "score": score,
        "image": None,
    } | fields


def write_evaluation(
    folder: Path,
    tasks: dict[str, Sequence[float] | list[dict[str, Any]]],
    *,
    changes: dict[str, dict[str, Any]] | None = None,
    model: str = "some model",
) -> Path:
    """An evaluation of tasks given by their scores or samples; `changes` replaces fields of tasks in results.json.

    A task whose name begins with `see` is a vision task.
    """
    results: dict[str, Any] = {"suite": "s", "model": model, "created": "2025-01-01", "versions": {}, "tasks": {}}
    (folder / "samples").mkdir(parents=True)
    for name, given in tasks.items():
        rows = [one if isinstance(one, dict) else sample(number, one) for number, one in enumerate(given)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "samples" / f"{name}.jsonl").write_text(lines)
        score = sum(row["score"] for row in rows) / max(1, len(rows))
        results["tasks"][name] = {
            "modality": "vision" if name.startswith("see") else "language",
            "version": 1,
            "n": len(rows),
            "metric": "accuracy",
            "score": score,
            "stderr": 0.01,
            "unparsed": 0.0,
            "metrics": {"accuracy": score},
            "dataset": {"path": "x/y", "config": None, "split": "test", "fingerprint": f"rows of {name}"},
            "protocol": "blind",
            "seconds": 2.0,
        } | (changes or {}).get(name, {})
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def write_run(folder: Path, *, flops: float = 2e12, samples: int = 100, losses: int = 3, **config: Any) -> Path:
    """A run directory; `config` are dotted keys of config.yaml with `__` for the dot."""
    folder.mkdir(parents=True)
    ledger = {
        **{"wall_s": 5.5, "train_s": 4.25, "steps": 2, "samples": samples, "tower_passes": 7},
        "tokens": {"text": 5000, "image": 300, "pad": 20, "supervised": 1234},
        "flops": {"language": flops, "projector": 10, "tower": 0},
        "peak_memory_bytes": {"host": 2**30, "device": None},
        "energy_kwh": None,
        "params": {"trainable": 1_000_000, "total": 2_000_000},
        "hardware": {"machine": "x86_64", "gpus": []},
        "versions": {"torch": "2.0"},
    }
    (folder / "ledger.json").write_text(json.dumps(ledger))
    nested: dict[str, Any] = {"out": str(folder)}
    for key, value in config.items():
        place = nested
        *above, last = key.split("__")
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    (folder / "config.yaml").write_text(json.dumps(nested))  # JSON is YAML
    rows = "".join(f"{step},{3.0 - step / 10}\n" for step in range(losses))
    (folder / "metrics.csv").write_text(f"step,train_loss\n{rows}")
    return folder


VOID = {"meta", "input", "br", "link", "img", "source"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; complains about elements that are not closed in order."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" not in self._open and "style" not in self._open:
            self.text.append(data)

    def of(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            found
            for name, found in self.elements
            if name == tag and all(found.get(k) == v for k, v in attributes.items())
        ]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())
