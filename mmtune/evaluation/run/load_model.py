"""The model that is evaluated: loaded, prepared, and its running counts."""

from __future__ import annotations

import os
from pathlib import Path

from mmtune.common.errors import UserError
from mmtune.interfaces import Generator, capabilities

USAGE = ("prompt_tokens", "generated_tokens", "reused_tokens", "tower_passes")
COSTS = ("seconds", *USAGE)
BATCH_TOKENS = 16384  # as `VisionLanguageModel` holds at once of itself


def load_model(
    path: str | Path,
    device: str = "auto",
    *,
    language: str | None = None,
    template: str | None = None,
    template_date: str | None = None,
) -> Generator:
    """Load a run, a saved model, or a plain language model by folder or hub id.

    Args:
        path: what `VisionLanguageModel.from_pretrained` accepts.
        device: `auto` (a GPU where there is one, in a group of processes each its own), `cpu`, `cuda`, `cuda:1`. In
            bfloat16 on CUDA.
        language: see `VisionLanguageModel.from_pretrained`.
        template: see `VisionLanguageModel.from_pretrained`.
        template_date: see `VisionLanguageModel.from_pretrained`.

    Raises:
        UserError: no model there, or no such device here.
    """
    import torch

    from mmtune.generation.generator import VisionLanguageModel

    if device == "auto":
        cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % cards}" if cards else "cpu"
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device}: cannot be used here ({reason}); try --device auto") from None
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    model: Generator = VisionLanguageModel.from_pretrained(
        path, device=where, dtype=dtype, language=language, template=template, template_date=template_date
    )
    return model


def check_reference(path: str | Path, *, language: str | None = None, template: str | None = None) -> None:
    """Make sure, before rows are looked at, that there is a model and that its language model can be computed.

    Raises:
        UserError: see `VisionLanguageModel.from_pretrained`.
    """
    from mmtune.models.fitness.check import fitness_of
    from mmtune.models.language import load_config
    from mmtune.models.saving import read_spec

    spec = read_spec(str(path), language=language, template=template)
    fitness_of(load_config(spec.language), spec.language, sees=spec.vision is not None)


def fold_adapters(model: Generator) -> None:
    """Fold a model's adapters into its weights, since apart they cost time at every token.

    Its fingerprint changes by that, and where arithmetic rounds in another order it may differ from one machine to the
    next: what names stored answers is the fingerprint from before. A quantised model keeps its adapters, which would be
    rounded away.
    """
    from mmtune.generation.generator import VisionLanguageModel

    if isinstance(model, VisionLanguageModel) and not getattr(model.base_language, "is_quantized", False):
        model.merge_adapters()


def computing_note(model: Generator) -> str | None:
    """How a model of mmtune's is computed, where that is slower than usual; None where there is nothing to say."""
    from mmtune.generation.generator import VisionLanguageModel

    if isinstance(model, VisionLanguageModel) and not model.fitness.packed:
        return model.fitness.told(model.name)
    return None


def settings_of(
    model: Generator, batch_tokens: int, share_prefixes: bool | None, past_window: str
) -> dict[str, bool | int | str]:
    """The attributes that a model declares to have, as they are to be while it is evaluated."""
    able, found = capabilities(model), dict[str, bool | int | str]()
    if "batching" in able:
        found["batch_tokens"] = batch_tokens
        if share_prefixes is not None:
            found["share_prefixes"] = share_prefixes
    if "window" in able:
        found["past_window"] = past_window
    return found


def usage_of(model: Generator) -> dict[str, int]:
    """The model's running counts, 0 for those it does not keep."""
    counts = getattr(model, "usage", None) or {}
    return {key: int(counts.get(key, 0)) for key in USAGE}
