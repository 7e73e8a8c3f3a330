"""mmtune: language-first instruction tuning of vision-language models, with its evaluator and its ledger of cost."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmtune.common.version import __version__

__all__ = [
    "Completion",
    "Prompt",
    "SamplingParams",
    "Turn",
    "Verdict",
    "VisionLanguageModel",
    "__version__",
    "evaluate",
    "fit",
    "plan",
    "recipe",
]

if TYPE_CHECKING:
    from mmtune.evaluation.run.engine import evaluate
    from mmtune.generation.generator import VisionLanguageModel
    from mmtune.interfaces import Completion, Prompt, SamplingParams, Turn, Verdict
    from mmtune.training.fit import fit
    from mmtune.training.plan import plan
    from mmtune.training.recipes import recipe

# where each name is; torch takes seconds to import, and `mmtune --help` must not wait for it
_PLACES = {
    "VisionLanguageModel": "mmtune.generation.generator",
    "evaluate": "mmtune.evaluation.run.engine",
    "fit": "mmtune.training.fit",
    "plan": "mmtune.training.plan",
    "recipe": "mmtune.training.recipes",
    **dict.fromkeys(("Completion", "Prompt", "SamplingParams", "Turn", "Verdict"), "mmtune.interfaces"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'mmtune' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
