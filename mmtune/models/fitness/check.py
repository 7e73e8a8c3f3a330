"""Choice of how a language model is computed: documents together in packs, one by one, or not at all.

The results must equal those of the model's own code. A trial (`mmtune.models.fitness.trial`) on a small copy of the
same config decides. Its result is cached on disk, under a hash of the config and of the code in the trial. A refusal is
kept in this process only, because a lack of memory can cause one.
"""

from __future__ import annotations

from typing import Any

from mmtune.common.errors import UserError, brief
from mmtune.models.fitness.result import Fitness, UnfitError
from mmtune.models.fitness.trial import examine
from mmtune.models.outcomes import keep_outcome, outcome_key, read_outcome, settings_of

# code that decides a trial's outcome, below mmtune/models
_TRIED = ("attention/*.py", "decoding/*.py", "fitness/*.py", "head.py")
_FOLDER = "families"  # folder in the cache


def fitness_of(config: Any, reference: str, *, sees: bool = False) -> Fitness:
    """Return how the language model of this config is computed.

    Args:
        config: config of transformers.
        reference: name of the model in error messages.
        sees: whether the model must accept images.

    Raises:
        UserError: the model cannot be computed here, or not with images; the trial ran out of memory.
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
    """Return the class name of the config's causal language model, or of the config where transformers has none."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return str((known or type(config)).__name__)


def _known(config: Any) -> Fitness:
    """Return the result of the trial, from memory, from the cache on disk, or by running it.

    Raises:
        UnfitError: the model cannot be computed here.
        UserError: the trial ran out of memory.
    """
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
    except MemoryError as error:  # it says nothing about the model
        raise UserError(
            f"out of memory while a small copy of the language model was tried ({error}); free some, and try again"
        ) from None
    except Exception as error:  # untested code of transformers; any error means that the model is unfit
        return f"its trial ended in {type(error).__name__}: {brief(' '.join(str(error).split()), 200)}"
