"""Trial, on a small copy, of whether mmtune's ways of computing a language model give the model's own results.

The reference is the model's own forward pass on one document at a time. Compared with it are the logits and gradients
of several documents in a pack, and the logits of prompts that share a prefix and are completed together. The model's
own loss is compared with the cross entropy of the reference. Initial weights hide faults (norms of 1, biases of 0,
closed gates), so every parameter gets a random value that affects the output.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import _disable_current_modes
from transformers import LogitsProcessor, LogitsProcessorList

from mmtune.data.collate import PackLayout
from mmtune.interfaces import SamplingParams
from mmtune.models.attention.packed import PACKED, packed_hidden, use_attention
from mmtune.models.decoding.alone import Alone, forget_lengths
from mmtune.models.decoding.draft import Draft
from mmtune.models.decoding.engine import PrefixSharing
from mmtune.models.decoding.passes import Passes
from mmtune.models.decoding.prefixes import in_tree_order
from mmtune.models.decoding.sampler import Sampler, random_numbers
from mmtune.models.decoding.stopping import StopConditions
from mmtune.models.decoding.token_stream import PLAIN
from mmtune.models.fitness.result import Fitness, UnfitError
from mmtune.models.fitness.shrinking import LONGEST
from mmtune.models.fitness.small_copy import error_text, raise_fatal, random_ids, small_copy
from mmtune.models.head import Head

_LENGTHS = (9, LONGEST, 17)  # tokens of the documents: short, beyond every threshold, and shorter again
_TOLERANCE = 2e-3  # of the logits' standard deviation, or of the largest gradient; leaks are hundreds of times that
_INSIDE = ("", ".decoder", ".transformer", ".language_model", ".encoder")  # body's path in the base model


def examine(config: Any) -> Fitness:
    """Determine by trial how a language model of this config can be computed.

    Raises:
        UnfitError: no way of computing it gives its own results, or no small copy of it can be tried.
        MemoryError: there is too little memory for the trial.
    """
    with (
        _disable_current_modes(),
        _quiet(),
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),  # another default, as within Lightning's `configure_model`, is for the model itself
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        torch.manual_seed(0)
        return _Trial(small_copy(config)).outcome()


# ---------------------------------------------------------------- the small copy


# ---------------------------------------------------------------- the trial


class _Trial:
    """Small model with its documents and the logits that its own forward pass gives for them."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.documents = [random_ids(length) for length in _LENGTHS]
        self.own = [self._own_logits(ids) for ids in self.documents]
        self.deviation = float(torch.cat(self.own).std())

    def outcome(self) -> Fitness:
        """Run all checks and return the result; raise UnfitError if no way of computing the model gives its results."""
        self._check_next_tokens()
        self._check_loss()
        self.body = self._find_body()
        self.head = Head(self.model, self.body, plain=self._plain_head())
        by_embeddings = self._takes_embeddings()
        self.alone = Alone(self.model, self.body, by_embeddings=by_embeddings)
        try:
            self._generate(input_ids=self.documents[0][None])
        except Exception as error:
            raise_fatal(error)
            raise UnfitError(f"transformers cannot generate with it ({error_text(error)})") from None
        reason = self._why_not_packed() if by_embeddings else "it is given token ids, not embeddings"
        sees = by_embeddings and (not reason or self._generates_from_embeddings())
        return Fitness("one by one" if reason else "packed", reason, self.body, self.head.plain, by_embeddings, sees)

    def _own_logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Compute the reference logits [tokens, vocabulary], without state from earlier, longer documents."""
        forget_lengths(self.model)
        with torch.no_grad():
            logits: torch.Tensor = self.model(input_ids=ids[None], use_cache=False).logits[0]
        return logits

    def _differ(self, found: torch.Tensor, own: torch.Tensor) -> bool:
        # NaN counts as different
        return not float((found.detach() - own).abs().max()) < _TOLERANCE * self.deviation

    def _check_next_tokens(self) -> None:
        """Check that logits depend on the preceding token, and on no later one.

        Raises:
            UnfitError: they do not.
        """
        ids, own = self.documents[1], self.own[1]
        for place, told, problem in (
            (-1, slice(0, -1), "what it says of a token depends on the tokens after it"),
            # only the neighbor, since a chunk of attention may begin after any earlier token
            (-2, slice(-1, None), "what it says of a token does not depend on the tokens before it"),
        ):
            other = ids.clone()
            other[place] = 10 + (other[place] - 9) % 90
            if self._differ(self._own_logits(other)[told], own[told]) == (place == -1):
                raise UnfitError(problem)

    def _check_loss(self) -> None:
        """Check that the model's own loss, without that of the routers of experts, is the cross entropy.

        Raises:
            UnfitError: it is not.
        """
        ids = self.documents[1]
        forget_lengths(self.model)
        with _without_router_loss(self.model), torch.no_grad():
            own = self.model(input_ids=ids[None], labels=ids[None], use_cache=False).loss
        expected = cross_entropy(self.own[1][:-1], ids[1:])
        if own is None or not abs(float(own - expected)) < _TOLERANCE * max(1.0, float(expected)):
            raise UnfitError("its own loss is not the cross entropy of the next tokens")

    def _find_body(self) -> str:
        problem, prefix = "no module gives the hidden states", self.model.base_model_prefix
        base = prefix if hasattr(self.model, prefix) else "model"  # Llama 4's code names a prefix that it lacks
        for inside in _INSIDE:
            body = base + inside
            try:
                logits = Head(self.model, body, plain=False)(self._hidden(body)[self._some()])
            except Exception as error:
                raise_fatal(error)
                problem = problem if inside else error_text(error)
                continue
            if not self._differ(logits, self.own[1][self._some()]):
                return body
        raise UnfitError(f"its step from hidden states to logits cannot be taken alone ({problem})")

    def _hidden(self, body: str) -> torch.Tensor:
        forget_lengths(self.model)
        with torch.no_grad():
            out = self.model.get_submodule(body)(input_ids=self.documents[1][None], use_cache=False)
        hidden: torch.Tensor = out[0][0]
        return hidden

    def _some(self) -> torch.Tensor:
        """Return positions out of order: a loss or a likelihood may need the logits of any positions."""
        return torch.tensor([7, 3, 11])

    def _plain_head(self) -> bool:
        output, hidden = self.model.get_output_embeddings(), self._hidden(self.body)[self._some()]
        with contextlib.suppress(RuntimeError, TypeError), torch.no_grad():
            return output is not None and torch.equal(output(hidden), Head(self.model, self.body, plain=False)(hidden))
        return False

    def _takes_embeddings(self) -> bool:
        ids = self.documents[1]
        try:
            with torch.no_grad():
                alone = Alone(self.model, self.body, by_embeddings=True)
                logits = self.head(alone.hidden(ids, self.model.get_input_embeddings()(ids)))
        except Exception as error:
            raise_fatal(error)
            return False
        return not self._differ(logits, self.own[1])

    def _generates_from_embeddings(self) -> bool:
        try:
            self._generate(inputs_embeds=self.model.get_input_embeddings()(self.documents[0])[None])
        except Exception as error:
            raise_fatal(error)
            return False
        return True

    def _generate(self, **inputs: torch.Tensor) -> None:
        forget_lengths(self.model)
        mask = torch.ones(1, len(self.documents[0]), dtype=torch.long)
        with torch.no_grad():
            self.model.generate(
                **inputs,
                attention_mask=mask,
                logits_processor=LogitsProcessorList([_Certain()]),
                max_new_tokens=2,
                eos_token_id=None,
                pad_token_id=0,
                **PLAIN,
            )

    # ---------------------------------------------------------------- packed

    def _why_not_packed(self) -> str:
        """Return why packs give wrong results, or an empty string if all checks pass."""
        for check, problem in (
            (self._pack_is_right, "documents of a pack depend on each other"),
            (self._gradients_are_right, "gradients of a pack are not the sum of its documents'"),
            (self._tree_is_right, "prompts that are computed together depend on each other"),
        ):
            try:
                if not check():
                    return problem
            except Exception as error:
                raise_fatal(error)
                return f"{problem}, or cannot be computed so ({error_text(error)})"
        return ""

    def _pack(self) -> torch.Tensor:
        """Compute the hidden states of all documents in a pack."""
        ids = torch.cat(self.documents)
        numbers = torch.repeat_interleave(torch.arange(len(_LENGTHS)), torch.tensor(_LENGTHS))
        places = torch.cat([torch.arange(length) for length in _LENGTHS])
        forget_lengths(self.model)
        with use_attention(self.model, PACKED):
            body = self.model.get_submodule(self.body)
            return packed_hidden(body, self.model.get_input_embeddings()(ids), places, PackLayout.of(ids, ids, numbers))

    def _pack_is_right(self) -> bool:
        with torch.no_grad():
            return not self._differ(self.head(self._pack()), torch.cat(self.own))

    def _gradients_are_right(self) -> bool:
        words = self.model.get_input_embeddings()
        own = self._gradients(lambda: torch.cat([self.alone.hidden(ids, words(ids)) for ids in self.documents]))
        packed = self._gradients(self._pack)
        if own.keys() != packed.keys():
            return False
        least = 1e-3 * max(float(gradient.abs().max()) for gradient in own.values())
        return all(
            float((packed[name] - gradient).abs().max()) < _TOLERANCE * (least + float(gradient.abs().max()))
            for name, gradient in own.items()
        )

    def _gradients(self, hidden: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
        self.model.zero_grad()
        wanted = torch.cat([torch.cat([ids[1:], ids.new_tensor([-100])]) for ids in self.documents])
        cross_entropy(self.head(hidden()), wanted).backward()
        return {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}

    def _tree_is_right(self) -> bool:
        """Return whether prompts with a common prefix, completed together, get the reference logits at every step."""
        begin, steps, found = random_ids(7, 1).numpy(), 4, list[torch.Tensor]()
        prompts = [np.concatenate([begin, random_ids(length, 2).numpy()]) for length in (3, LONGEST - 10, 8)]

        def head(hidden: torch.Tensor) -> torch.Tensor:
            found.append(self.head(hidden))
            return _certain(len(hidden), found[-1].shape[-1])

        words = self.model.get_input_embeddings()
        body = self.model.get_submodule(self.body)
        passes = Passes(self.model, body, head, embed=lambda ids: words(torch.from_numpy(ids)))
        conditions, numbers = StopConditions(steps, (), ()), random_numbers(0, "", 0)
        drafts = [Draft(prompt, conditions, _Characters(), numbers) for prompt in prompts]
        forget_lengths(self.model)
        with torch.no_grad():
            PrefixSharing(passes, batch_tokens=1024).complete(drafts, Sampler(SamplingParams(max_tokens=steps)))
        own = [self._own_logits(torch.from_numpy(drafts[i].token_ids[:-1]))[-steps:] for i in in_tree_order(prompts)]
        return not self._differ(torch.cat(found), torch.stack(own, 1).flatten(0, 1))


def _certain(rows: int, vocabulary: int) -> torch.Tensor:
    """Return logits [rows, vocabulary] that make the next token certain, a different one in each row."""
    logits = torch.zeros(rows, vocabulary)
    logits[range(rows), range(50, 50 + rows)] = 1.0
    return logits


class _Certain(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Logits processor that makes the next token certain."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return _certain(*scores.shape)


class _Characters:
    """Tokenizer whose token ids are the code points of characters."""

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Return the characters with these code points."""
        return "".join(map(chr, ids))

    def convert_ids_to_tokens(self, token: int) -> str:
        """Return the character with this code point."""
        return chr(token)


@contextlib.contextmanager
def _without_router_loss(model: Any) -> Iterator[None]:
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}.values()
    asked = [config for config in configs if getattr(config, "output_router_logits", False)]
    for config in asked:
        config.output_router_logits = False
    try:
        yield
    finally:
        for config in asked:
            config.output_router_logits = True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings and log messages of transformers, which concern only the small copy of the user's model."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(before)
