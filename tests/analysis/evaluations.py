"""Folders as `mmtune eval` leaves them, written directly."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
