"""The contract of all parts: what is asked, what is answered, and how an answer is judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from mmtune.common.errors import UserError, brief

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "window", "thinking"]
Capability = Literal["images", "loglikelihood", "sampling", "thinking", "always_thinks", "window", "batching"]
"""What a generator may be able to do beyond one greedy answer to a text.

It is shown `images`, scores choices (`loglikelihood`), draws several completions (`sampling`), thinks first where it is
told to (`thinking`) or always (`always_thinks`), has the attributes `window`, `too_long` and `past_window` (`window`),
or `batch_tokens` and `share_prefixes` (`batching`).
"""

LEAST_TEMPERATURE = LEAST_TOP_P = 0.001  # far below, float32 has no number left for the likelihoods


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says.

    Attributes:
        role: who speaks.
        text: what is said.
        supervised: whether an answer is learned; one that is not is context for those that follow.
        thought: whether the text begins with a thought that the row gives apart from the answer.
    """

    role: Role
    text: str
    supervised: bool = True
    thought: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation up to the answer that is asked for.

    Attributes:
        turns: an optional system turn, then user and assistant in alternation, the user last. `<image>` in a user's
            text marks where an image goes.
        images: in the order of their marks.
        response_prefix: how the answer begins; it is given, and not part of the completion.
        name: decides, with seed and sample, the random numbers of a completion, so that they depend on no other prompt;
            the place in the call by default.
    """

    turns: tuple[Turn, ...]
    images: tuple[Any, ...] = ()
    response_prefix: str = ""
    name: str | None = None

    @classmethod
    def of(
        cls,
        text: str,
        images: Sequence[Any] = (),
        *,
        system: str | None = None,
        response_prefix: str = "",
        name: str | None = None,
    ) -> Prompt:
        """A prompt of one user turn."""
        turns = (Turn("system", system),) if system is not None else ()
        return cls((*turns, Turn("user", text)), tuple(images), response_prefix, name)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How completions are chosen.

    Attributes:
        n: completions of each prompt.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn, the more evenly the higher.
        top_p: draw only from the likeliest tokens that together have this probability (nucleus sampling, arXiv
            1904.09751, section 3.1).
        top_k: draw only from so many likeliest tokens; 0 from all.
        min_p: draw only from tokens with at least this share of the likeliest one's probability (arXiv 2407.01082).
        presence_penalty: subtracted from the logit of each token that the completion already has.
        repetition_penalty: logits of tokens that prompt or completion already have are divided by it where positive,
            and multiplied by it where negative (CTRL, arXiv 1909.05858, section 4.1).
        max_tokens: the most tokens a completion may have, its thought not counted.
        stop: strings that end a completion, which includes the first.
        thinking_budget: the most tokens of a thought before the answer; 0 has it answer at once.
        thinking_overrun: what follows a thought that is longer: `unparsed`, no answer; `close`, the mark that ends a
            thought, and the answer.
        seed: decides all random numbers, with the prompt's name and the sample's number; None draws others each time.
        logprobs: have completions tell the log-probability of their tokens.

    Raises:
        UserError: a value is out of its range.
    """

    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    thinking_budget: int = 0
    thinking_overrun: Literal["unparsed", "close"] = "unparsed"
    seed: int | None = 0
    logprobs: bool = False

    def __post_init__(self) -> None:
        _whole("n", self.n, 1)
        _whole("max_tokens", self.max_tokens, 1)
        _whole("thinking_budget", self.thinking_budget, 0)
        _whole("top_k", self.top_k, 0)
        if not (_real(self.temperature) and (self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature <= 10)):
            said = f"give a number from 0 (always the likeliest) to 10; above 0, at least {LEAST_TEMPERATURE}"
            raise UserError(f"temperature {brief(repr(self.temperature))}: {said}")
        if not (_real(self.top_p) and LEAST_TOP_P <= self.top_p <= 1):
            said = f"give a number above 0 (at least {LEAST_TOP_P}), up to 1 (all tokens)"
            raise UserError(f"top_p {brief(repr(self.top_p))}: {said}")
        if not (_real(self.min_p) and 0 <= self.min_p <= 1):
            raise UserError(f"min_p {brief(repr(self.min_p))}: give a number from 0 (all tokens) to 1")
        if not (_real(self.presence_penalty) and -100 <= self.presence_penalty <= 100):
            raise UserError(f"presence_penalty {brief(repr(self.presence_penalty))}: give a number from -100 to 100")
        if not (_real(self.repetition_penalty) and 0.01 <= self.repetition_penalty <= 100):
            raise UserError(
                f"repetition_penalty {brief(repr(self.repetition_penalty))}: give a number from 0.01 to 100"
            )
        if self.seed is not None and (_not_whole(self.seed) or not 0 <= self.seed < 2**63):
            raise UserError(f"seed {brief(repr(self.seed))}: give a whole number from 0 to 2^63 - 1")
        if self.thinking_overrun not in ("unparsed", "close"):
            raise UserError(f"thinking_overrun {brief(repr(self.thinking_overrun))}: give unparsed or close")
        if not isinstance(self.stop, list | tuple) or not all(isinstance(text, str) for text in self.stop):
            raise UserError(f"stop {brief(repr(self.stop))}: give strings in a tuple")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken each time."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote after a prompt.

    Attributes:
        text: the answer, after the response prefix, up to and with the first stop string.
        thought: what was thought before it, with the mark that ends a thought where there is one.
        finish_reason: `stop` at its end or a stop string, `length` at the most tokens that were asked for, `window`
            where the model can read no further, `thinking` where the thought took all that was allowed and no answer
            followed.
        tokens: how many were generated, the thought's and the one that ended it included.
        logprob: the natural log-probability of these tokens, by the model itself; None if it was not asked for.
    """

    text: str
    thought: str = ""
    finish_reason: FinishReason = "stop"
    tokens: int = 0
    logprob: float | None = None

    @property
    def response(self) -> str:
        """All that was written: the thought, an empty line, and the answer."""
        return f"{self.thought}\n\n{self.text}" if self.thought and self.text else self.thought + self.text


@runtime_checkable
class Generator(Protocol):
    """Anything that completes prompts.

    Attributes:
        name: what is printed and stored.
        fingerprint: changes with the weights and the template; decides whether old completions still hold.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[Completion]]:
        """The `params.n` completions of each prompt.

        Prompts of one call may share images (the same object) and long beginnings; those that do stand next to each
        other.
        """
        ...


class Scorer(Generator, Protocol):
    """A generator with the capability `loglikelihood`."""

    def loglikelihood(self, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each prompt, the summed natural log-probability of each of its choices right after the prefix."""
        ...


def capabilities(generator: Any) -> frozenset[Capability]:
    """What a generator declares to be able to do; nothing where it declares nothing."""
    return frozenset(getattr(generator, "capabilities", ()))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of a completion.

    Attributes:
        score: from 0 (wrong) to 1 (right).
        answer: what was read in the completion; None where nothing was found.
        details: further figures, by name.
        error: why there is no judgment; None where there is one.

    Raises:
        UserError: the score is not from 0 to 1.
    """

    score: float
    answer: Any = None
    details: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.score, int | float) and 0 <= self.score <= 1):
            raise UserError(f"score {brief(repr(self.score))}: a verdict's is a number from 0 to 1")


class Verifier(Protocol):
    """Judges completions: by a rule, by a program, or by a model."""

    @property
    def name(self) -> str: ...  # noqa: D102

    def verify(self, completion: Completion, reference: Any) -> Verdict:
        """The verdict on a completion, given what was wanted."""
        ...


class Selector(Protocol):
    """Chooses among the completions of one prompt."""

    @property
    def name(self) -> str: ...  # noqa: D102

    def select(self, completions: Sequence[Completion], verdicts: Sequence[Verdict]) -> int:
        """The place of the chosen completion."""
        ...


class RowSource(Protocol):
    """Rows that are drawn from a seed instead of read from a file; version and seed are their fingerprint."""

    @property
    def version(self) -> str: ...  # noqa: D102

    def rows(self, seed: int) -> Iterator[Mapping[str, Any]]:
        """The rows of a seed, the same ones each time."""
        ...


def _whole(name: str, value: Any, least: int) -> None:
    if _not_whole(value) or value < least:
        raise UserError(f"{name} {brief(repr(value))}: give a whole number of at least {least}")


def _not_whole(value: Any) -> bool:
    return isinstance(value, bool) or not isinstance(value, int)


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
