"""What the evaluator asks of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mmtune.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

USAGE = ("prompt_tokens", "generated_tokens", "reused_tokens", "tower_passes")


class AnsweringModel(Protocol):
    """Anything that answers prompts.

    Two more attributes are used where a model has them: `usage`, a dict of the counts named in `USAGE`,
    and `tower`, which is None in a model that cannot see photos.

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
        primer: str = "",
        max_new_tokens: int = 16,
        stop: Sequence[str] = (),
        batch_tokens: int = 4096,
    ) -> list[str]:
        """Answer each prompt greedily.

        Args:
            prompts: what the user says, `<image>` where a photo goes; the model adds its own chat template.
            images: the photos of each prompt, in order.
            primer: how the assistant's turn begins.
            max_new_tokens: the most tokens an answer may have.
            stop: strings that end an answer.
            batch_tokens: how many tokens may be computed at once; must not change the answers.

        Returns:
            One answer per prompt: the raw text after the primer, up to and with the first stop string.
        """
        ...


def load_model(path: str | Path, device: str = "auto") -> AnsweringModel:
    """Load a run, a saved model, or a plain language model by folder or hub id.

    Args:
        path: what `VisionLanguageModel.from_pretrained` accepts.
        device: `auto` (the GPU where there is one), `cpu`, `cuda`, `cuda:1`. In bfloat16 on CUDA.

    Raises:
        UserError: no model there, or no such device here.
    """
    import torch

    from mmtune.models.vlm import VisionLanguageModel

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device}: cannot be used here ({reason}); try --device auto") from None
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    model: AnsweringModel = VisionLanguageModel.from_pretrained(path, device=where, dtype=dtype)
    return model


def usage_of(model: AnsweringModel) -> dict[str, int]:
    """The model's running counts, 0 for those it does not keep."""
    counts = getattr(model, "usage", None) or {}
    return {key: int(counts.get(key, 0)) for key in USAGE}
