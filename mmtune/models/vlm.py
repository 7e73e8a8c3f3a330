"""Composed model that is loaded, saved and set to a stage of training."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import torch

from mmtune.common.errors import UserError
from mmtune.models import saving
from mmtune.models.composed import ComposedModel
from mmtune.models.fingerprint import fingerprint

Stage = Literal["align", "tune"]


class TunableModel(ComposedModel):
    """Composed model with loading, saving and stages; `mmtune.generation.generator` adds answers."""

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        language: str | None = None,
        template: str | None = None,
        template_date: str | None = None,
    ) -> Self:
        """Load a run, a saved or exported model, a LLaVA of transformers or of the released code, or a language model.

        `language` replaces the language model that adapters or a projector name, `template` the recorded template, and
        `template_date` (2026-01-31) the recorded date, or the current date that the template would write.

        Raises:
            UserError: there is no model there, or a part of it is missing.
        """
        model = saving.load(
            cls,
            str(path),
            dtype=dtype,
            device=torch.device(device),
            language=language,
            template=template,
            template_date=template_date,
        )
        model.name = str(path)
        return model.to(device).eval()

    def save_pretrained(self, path: str | Path) -> None:
        """Save the trained weights and references to the other parts, completely or not at all."""
        saving.save(self, Path(path))

    def set_stage(self, stage: Stage) -> None:
        """Set what is trained: `align` the projector; `tune` the language model (its adapters, if any) and projector.

        Raises:
            UserError: the stage has nothing to train.
        """
        self.requires_grad_(False)
        if stage == "align" and self.projector is None:
            raise UserError("--model.stage align: a text-only model has no projector to align; give --model.vision")
        if self.projector is not None:
            self.projector.requires_grad_(True)
        if stage == "tune":
            for name, parameter in self.language.named_parameters():
                if self.spec.lora is None or "lora_" in name:
                    parameter.requires_grad_(True)
            self.spec.language_trained = self.spec.lora is None

    def merge_adapters(self) -> None:
        """Merge the adapters into the language model's weights, in place; the answers stay the same.

        Raises:
            UserError: the weights are quantized, and rounding would remove the adapters.
        """
        if self.spec.lora is not None:
            if self.spec.quantise is not None:
                raise UserError(
                    f"{self.spec.quantise}: adapters are not folded into quantised weights; load the model with "
                    "quantise null in mmtune.json to merge them"
                )
            self.language = self.language.merge_and_unload()
            self.spec.lora, self.spec.language_trained = None, True

    @property
    def fingerprint(self) -> str:
        """Hash of everything that can change an answer; see `mmtune.models.fingerprint`."""
        return fingerprint(self)
