"""mmtune: language-first instruction tuning of vision-language models, with its evaluator and its ledger of cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmtune.common.version import __version__

__all__ = ["VisionLanguageModel", "__version__", "evaluate"]

if TYPE_CHECKING:
    from mmtune.evaluation.run.engine import evaluate
    from mmtune.generation.generator import VisionLanguageModel


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `mmtune --help` must not wait for it
    if name == "VisionLanguageModel":
        from mmtune.generation.generator import VisionLanguageModel

        return VisionLanguageModel
    if name == "evaluate":
        from mmtune.evaluation.run.engine import evaluate

        return evaluate
    raise AttributeError(f"module 'mmtune' has no attribute {name!r}")
