"""Write the table of docs/models.md: how each family of the installed transformers is computed.

    .venv/bin/python tests/parity/families_table.py

A family is tried with its default config, which for most is that of a published model, unless `OPTIONS` says otherwise.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import mmtune.common.torchvision_ops  # noqa: F401  # before transformers

from transformers import AutoConfig  # isort: skip
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mmtune.common.errors import UserError
from mmtune.models.fitness.check import fitness_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- families -->", "<!-- end of families -->"
# where the defaults are no model
OPTIONS: dict[str, dict[str, object]] = {
    "deepseek_v2": {"num_experts_per_tok": 6, "n_group": 1, "topk_group": 1},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "nemotron": {"num_key_value_heads": 8, "head_dim": 128},
    "ministral": {"head_dim": 128, "num_key_value_heads": 8},
}


def outcome(model_type: str) -> tuple[str, str]:
    """How a family is computed, and why not packed."""
    try:
        config = AutoConfig.for_model(model_type, **OPTIONS.get(model_type, {}))
        fitness = fitness_of(config, model_type)
    except UserError as error:
        told = str(error).removeprefix(f"{model_type}: ").rpartition("; take another")[0]
        return "refused", told.partition(" cannot be used here: ")[2]
    except Exception as error:  # a default config that its own family does not take
        return "refused", f"its default config is no model ({type(error).__name__})"
    return fitness.way, fitness.reason


def table(outcomes: dict[str, tuple[str, str]]) -> str:
    """The table in markdown: families of one outcome and one reason in a row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name, (way, reason) in sorted(outcomes.items()):
        short = re.sub(r" \(\w+:.*", "", re.sub(r"^its (trial|default config) .*", "its default config fails", reason))
        rows.setdefault((way, short), []).append(name)
    order = ("packed", "one by one", "refused")
    lines = ["| outcome | why | families |", "|---|---|---|"]
    for (way, reason), names in sorted(rows.items(), key=lambda row: (order.index(row[0][0]), -len(row[1]))):
        lines.append(f"| `{way}` | {reason or 'all that is tried is equal'} | {', '.join(f'`{n}`' for n in names)} |")
    return "\n".join(lines)


def listed() -> dict[str, str]:
    """What the page says of each family."""
    text = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    rows = re.findall(r"^\| `([a-z ]+)` \| .* \| (.*) \|$", text, re.MULTILINE)
    return {name: way for way, names in rows for name in re.findall(r"`([^`]+)`", names)}


def main() -> None:
    """Try all families, and write the page."""
    outcomes = {}
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        outcomes[name] = outcome(name)
        print(name, *outcomes[name], sep="  ", file=sys.stderr, flush=True)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(outcomes)}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
