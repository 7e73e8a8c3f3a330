"""How a language model is computed so that every figure is that of its own code: together, one by one, or not at all.

What decides is a trial (`mmtune.models.fitness.trial`) on a small copy of the same config. What it finds is kept in
the cache, by the content of the config and of the code that was tried; a refusal is not: lack of memory can bring one
about.
"""

from __future__ import annotations

from typing import Any

from mmtune.common.errors import UserError, brief
from mmtune.models.fitness.result import Fitness, UnfitError
from mmtune.models.fitness.trial import examine
from mmtune.models.outcomes import keep_outcome, outcome_key, read_outcome, settings_of

# what decides a trial's outcome, in the folder of models
_TRIED = ("attention/*.py", "decoding/*.py", "fitness/*.py", "head.py")
_FOLDER = "families"  # of the cache


def fitness_of(config: Any, reference: str, *, sees: bool = False) -> Fitness:
    """How the language model of this config is computed.

    Args:
        config: of transformers.
        reference: what the model is called in the message.
        sees: it is to be given photos.

    Raises:
        UserError: it cannot be computed here, or not with photos; memory is too small to try it.
    """
    try:
        fitness = _known(config)
        if sees and not fitness.sees:
            raise UnfitError("it answers from token ids alone, so that it cannot be given photos")
    except UnfitError as error:
        raise UserError(
            f"{reference}: {architecture(config)} cannot be used here: {error}; take another language model, one that "
            "docs/models.md names"
        ) from None
    return fitness


def architecture(config: Any) -> str:
    """The class that a config stands for, or the config's own where transformers knows no causal language model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return str((known or type(config)).__name__)


def _known(config: Any) -> Fitness:
    """What the trial gave, now or before."""
    key = outcome_key(settings_of(config), _TRIED)
    if key not in _outcomes:
        known = read_outcome(_FOLDER, key, Fitness)
        outcome = known or _try(config)
        if known is None and not isinstance(outcome, str):
            keep_outcome(_FOLDER, key, outcome)
        _outcomes[key] = outcome
    outcome = _outcomes[key]
    if isinstance(outcome, str):
        raise UnfitError(outcome)
    return outcome


_outcomes: dict[str, Fitness | str] = {}


def _try(config: Any) -> Fitness | str:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "transformers has no causal language model of this kind"
    try:
        return examine(config)
    except UnfitError as error:
        return str(error)
    except MemoryError as error:  # which says nothing of the model
        raise UserError(
            f"out of memory while a small copy of the language model was tried ({error}); free some, and try again"
        ) from None
    except Exception as error:  # transformers' code with a config that nobody has tried; any way it ends, it is unfit
        return f"its trial ended in {type(error).__name__}: {brief(' '.join(str(error).split()), 200)}"
