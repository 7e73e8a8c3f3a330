"""Options of `InstructionTuning`: checks of their ranges, and the spec of the model to train."""

from __future__ import annotations

import dataclasses
import math

from mmtune.common.errors import UserError, check_seed
from mmtune.models import saving
from mmtune.models.spec import LoraOptions, ModelSpec, ProjectorKind, Quantisation, VisionOptions


def check_rates(
    learning_rate: float | None, projector_learning_rate: float, warmup: float, weight_decay: float
) -> None:
    """Check the learning rates, the share of the warm-up and the weight decay.

    Raises:
        UserError: one of them is out of range.
    """
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise UserError(f"--model.learning_rate {learning_rate}: must be above 0")
    for flag, value in (("projector_learning_rate", projector_learning_rate), ("weight_decay", weight_decay)):
        if not 0 <= value < math.inf:
            raise UserError(f"--model.{flag} {value}: must be at least 0")
    if not 0 <= warmup <= 1:
        raise UserError(f"--model.warmup {warmup}: is a share of the steps, 0 to 1")


def starting_spec(
    base: str | None,
    language: str | None,
    vision: VisionOptions | None,
    projector: ProjectorKind | None,
    template: str | None,
    lora: LoraOptions | None,
    quantise: Quantisation | None,
    seed: int,
) -> ModelSpec:
    """Return the spec of the model to train, from a saved model or from its parts.

    Raises:
        UserError: there is no model, or options contradict each other.
    """
    check_seed(seed, "--model.seed")
    if lora is not None:
        lora.check()
    if base is None:
        if language is None:
            raise UserError("no model: give --model.base (a run or saved model) or --model.language")
        return ModelSpec(
            language, vision, projector or "mlp2x_gelu", template or "vicuna_v1", lora, quantise, seed=seed
        )
    if any(part is not None for part in (language, vision, projector)):
        raise UserError(
            "--model.base says what the model is made of; leave out --model.language, --model.vision and "
            "--model.projector"
        )
    spec = saving.read_spec(base)
    if lora is not None and spec.lora is not None:
        raise UserError(
            f"--model.base {base} has adapters already; leave out --model.lora to go on training them, "
            "or start from a merged model"
        )
    return dataclasses.replace(
        spec,
        template=template or spec.template,
        lora=lora or spec.lora,
        quantise=quantise or spec.quantise,
        seed=seed,
    )
