"""What the evaluator asks of a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mmtune.common.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

USAGE = ("prompt_tokens", "generated_tokens", "reused_tokens", "tower_passes")
COSTS = ("seconds", *USAGE)
BATCH_TOKENS = 16384  # as `VisionLanguageModel` holds at once of itself


class AnsweringModel(Protocol):
    """Anything that answers prompts.

    A model that is never scored by likelihood may lack `loglikelihood`. Four more attributes are used where a model has
    them: `usage`, a dict of the running counts named in `USAGE` (tokens computed, generated, and not computed again
    because prompts share them; photos through the tower); `tower`, which is None in a model that cannot see photos;
    `share_prefixes`, which says whether what prompts of one call begin with in common is computed once; and `thinking`,
    which is `optional` or `always` in a model that thinks before it answers. Its `generate` takes `thinking_budget`
    too, the most tokens of a thought, and gives the thought before the answer, with `</think>` between them.

    A model with a limit to what it reads may tell it as `window`, in tokens, if it has `too_long` too, as
    `VisionLanguageModel` has it; both methods then take `past_window`, `refuse` or `shorten`. A text that has an
    attribute `finish_reason` (`stop`, `length`, `window`) tells why it ended.

    Prompts of one call may share photos (the same object) and long beginnings; those that do stand next to each other.

    Attributes:
        name: what is printed and stored.
        fingerprint: changes with the weights and the template; decides whether old answers still hold.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def generate(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[Image.Image]] | None = None,
        *,
        response_prefix: str = "",
        max_tokens: int = 16,
        stop: Sequence[str] = (),
        batch_tokens: int = BATCH_TOKENS,
    ) -> list[str]:
        """Answer each prompt greedily.

        Args:
            prompts: what the user says, `<image>` where a photo goes; the model adds its own chat template.
            images: the photos of each prompt, in order.
            response_prefix: how the assistant's turn begins.
            max_tokens: the most tokens an answer may have.
            stop: strings that end an answer.
            batch_tokens: how many tokens may be computed at once; must not change the answers.

        Returns:
            One answer per prompt: the raw text after the response_prefix, up to and with the first stop string.
        """
        ...

    def loglikelihood(
        self,
        prompts: Sequence[str],
        choices: Sequence[Sequence[str]],
        images: Sequence[Sequence[Image.Image]] | None = None,
        *,
        response_prefix: str = "",
        batch_tokens: int = BATCH_TOKENS,
    ) -> list[list[float]]:
        """How likely each prompt's choices are.

        Args:
            prompts: what the user says, `<image>` where a photo goes; the model adds its own chat template.
            choices: for each prompt, texts that the assistant might say right after the response_prefix.
            images: the photos of each prompt, in order.
            response_prefix: how the assistant's turn begins.
            batch_tokens: how many tokens may be computed at once; must not change the figures.

        Returns:
            For each prompt the summed natural log-probability of each of its choices.
        """
        ...


def load_model(
    path: str | Path,
    device: str = "auto",
    *,
    language: str | None = None,
    template: str | None = None,
    template_date: str | None = None,
) -> AnsweringModel:
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
    model: AnsweringModel = VisionLanguageModel.from_pretrained(
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


def fold_adapters(model: AnsweringModel) -> None:
    """Fold a model's adapters into its weights, since apart they cost time at every token.

    Its fingerprint changes by that, and where arithmetic rounds in another order it may differ from one machine to the
    next: what names stored answers is the fingerprint from before. A quantised model keeps its adapters, which would be
    rounded away.
    """
    from mmtune.generation.generator import VisionLanguageModel

    if isinstance(model, VisionLanguageModel) and not getattr(model.base_language, "is_quantized", False):
        model.merge_adapters()


def usage_of(model: AnsweringModel) -> dict[str, int]:
    """The model's running counts, 0 for those it does not keep."""
    counts = getattr(model, "usage", None) or {}
    return {key: int(counts.get(key, 0)) for key in USAGE}
