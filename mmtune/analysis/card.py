"""Model card of an exported model: its parts, training recipe, data, scores and cost.

The sources are the spec of the model, the output files of its run, and the licenses that the README.md of the language
model and of the data name. Text from these files is escaped: it cannot act as Markdown, HTML or YAML in the card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mmtune.common.errors import UserError
from mmtune.common.files import locate, read_json
from mmtune.common.text import visible

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|!~&])")
_UNKNOWN = "not recorded"
_RESULTS_DEPTH = 3
# keys of config.yaml that make up the recipe, by section
_RECIPE = (
    ("model", ("stage", "base", "lora", "quantise", "learning_rate", "projector_learning_rate", "optimizer", "dtype")),
    ("data", ("max_length", "pack_tokens", "truncate")),
    ("trainer", ("max_epochs", "max_steps", "accumulate_grad_batches", "precision")),
)
_LOADING = {
    "llava-hf": """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("FOLDER")
processor = AutoProcessor.from_pretrained("FOLDER")
```""",
    "peft": """```python
import mmtune

model = mmtune.VisionLanguageModel.from_pretrained("FOLDER")
```

The adapter alone, for text: `peft.PeftModel.from_pretrained(base, "FOLDER")`.""",
    "merged": """```python
import mmtune

model = mmtune.VisionLanguageModel.from_pretrained("FOLDER")
```""",
}


def model_card(reference: str, spec: Mapping[str, Any], to: str) -> str:
    """Return the text of README.md.

    Args:
        reference: the exported run, saved model or other model; without a run, only the parts of the model are known.
        spec: parts of the model, as in `mmtune.json`.
        to: the export format: `llava-hf`, `peft` or `merged`.
    """
    run = _run(reference)
    vision = spec["vision"] or {}
    lines = [
        "---",
        _front_matter(spec, to).rstrip(),
        "---",
        "",
        f"# {escaped(_short(reference))}",
        "",
        "Exported by [mmtune](https://arxiv.org/abs/2411.10557), which tunes vision-language models on text.",
        "",
        "## How to load it",
        "",
        _LOADING[to],
        "",
        "## What it stands on",
        "",
        *_table(
            ("part", "value"),
            {
                "language model": _short(spec["language"]),
                "its licence": licence(spec["language"]) or _UNKNOWN,
                "vision tower": _short(vision["tower"]) if vision else "none",
                "tower weights": _short(vision["weights"]) if vision else "none",
                "projector": spec["projector"] if vision else "none",
                "template": spec["template"],
                "adapters": json.dumps(spec["lora"]) if spec["lora"] else "none",
            }.items(),
        ),
        "",
        "## How it was made",
        "",
        *_recipe(run),
        "",
        "## Data",
        "",
        *_data(run),
        "",
        "## Scores",
        "",
        *_scores(run),
        "",
        "## Cost",
        "",
        *_cost(run),
    ]
    return "\n".join(lines) + "\n"


def escaped(text: object) -> str:
    """Return untrusted text as one line of Markdown, with markup escaped and control characters visible."""
    return _MARKDOWN.sub(r"\\\1", visible(" ".join(str(text).split())))


def licence(reference: str) -> str | None:
    """Return the license named in the YAML front matter of the README.md in a folder or beside a file, or None."""
    try:
        path = locate(reference)
        readme = (path if path.is_dir() else path.parent) / "README.md"
        parts = readme.read_text(encoding="utf-8").split("---\n", 2)
        named = yaml.safe_load(parts[1]).get("license") if parts[0] == "" else None
    except (UserError, OSError, ValueError, IndexError, AttributeError, yaml.YAMLError):
        return None
    return str(named) if named else None


def _front_matter(spec: Mapping[str, Any], to: str) -> str:
    values = {
        "library_name": {"llava-hf": "transformers", "peft": "peft"}.get(to, "mmtune"),
        "pipeline_tag": "image-text-to-text" if spec["vision"] else "text-generation",
        "tags": ["mmtune"],
    }
    base = str(spec["language"])
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not locate(base).exists():  # a hub id
        values["base_model"] = base
    return str(yaml.safe_dump(values, sort_keys=False))


def _run(reference: str) -> Path | None:
    """Return the run directory of a run or of the model inside it; None without a run."""
    path = locate(reference)
    return next((p for p in (path, path.parent) if (p / "config.yaml").is_file()), None)


def _short(reference: object) -> str:
    """Shorten a reference: of an absolute path, keep only the last name."""
    kind, colon, name = str(reference).rpartition(":")
    return f"{kind}{colon}{Path(name).name if Path(name).is_absolute() else name}"


def _table(heads: tuple[str, ...], rows: Any) -> list[str]:
    cells = [heads, tuple("---" for _ in heads), *(tuple(escaped(cell) for cell in row) for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def _recipe(run: Path | None) -> list[str]:
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) if run else None
    except (OSError, ValueError, yaml.YAMLError):
        config = None
    if not isinstance(config, dict):
        return [f"The recipe was {_UNKNOWN}."]
    rows = [
        (f"{part}.{key}", json.dumps(value) if isinstance(value, dict) else _short(value))
        for part, keys in _RECIPE
        for key in keys
        if isinstance(config.get(part), dict) and (value := config[part].get(key)) is not None
    ]
    return _table(("option", "value"), [*rows, ("seed", config.get("seed_everything"))])


def _data(run: Path | None) -> list[str]:
    record = _json(run, "data.json")
    sources = record.get("sources")
    if not isinstance(sources, dict) or not sources:
        return [f"The data was {_UNKNOWN}."]
    prints = record.get("fingerprints") or {}
    return _table(
        ("source", "text rows", "visual rows", "SHA-256", "licence"),
        [
            (
                _short(name),
                counts.get("text"),
                counts.get("visual"),
                prints.get(name, _UNKNOWN),
                licence(name) or _UNKNOWN,
            )
            for name, counts in sources.items()
        ],
    )


def _scores(run: Path | None) -> list[str]:
    rows = [
        (
            results.get("suite"),
            name,
            task.get("n"),
            task.get("metric"),
            _percent(task.get("score")),
            task.get("protocol"),
        )
        for results in _evaluations(run)
        for name, task in results["tasks"].items()
    ]
    if not rows:
        return ["None in the run's directory."]
    return _table(("suite", "set", "rows", "metric", "score", "protocol"), rows)


def _evaluations(run: Path | None) -> Iterator[dict[str, Any]]:
    """Yield the results of the model's evaluations below its run; other models there, such as its base, are skipped."""
    if run is None:
        return
    own = {run.resolve(), (run / "model").resolve()}
    for depth in range(1, _RESULTS_DEPTH + 1):
        for file in sorted(run.glob("/".join(["*"] * depth + ["results.json"]))):
            results = _json(file.parent, file.name)
            named = results.get("model")
            if isinstance(results.get("tasks"), dict) and isinstance(named, str) and Path(named).resolve() in own:
                yield results


def _cost(run: Path | None) -> list[str]:
    ledger = _json(run, "ledger.json")
    if not ledger:
        return [f"The cost was {_UNKNOWN}."]
    tokens, flops = ledger.get("tokens") or {}, ledger.get("flops") or {}
    rows = {
        "seconds": ledger.get("wall_s"),
        "samples": ledger.get("samples"),
        "text tokens": tokens.get("text"),
        "photo tokens": tokens.get("image"),
        "tokens learnt from": tokens.get("supervised"),
        "floating-point operations": f"{sum(v for v in flops.values() if isinstance(v, int | float)):.3g}",
        "photos through the vision tower": ledger.get("tower_passes"),
        "energy, kWh": ledger.get("energy_kwh") if ledger.get("energy_kwh") is not None else "not measured",
        "parameters trained": (ledger.get("params") or {}).get("trainable"),
        "hardware": json.dumps(ledger.get("hardware")),
    }
    return _table(("what", "how much"), rows.items())


def _json(folder: Path | None, name: str) -> dict[str, Any]:
    try:
        value = read_json(folder / name) if folder else {}
    except (UserError, OSError):
        return {}
    return value if isinstance(value, dict) else {}


def _percent(score: object) -> str:
    return f"{100 * score:.1f} %" if isinstance(score, int | float) else _UNKNOWN
