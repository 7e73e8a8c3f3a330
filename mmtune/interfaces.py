"""Interfaces that all parts share: prompts, sampling options, completions, generators and verifiers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from mmtune.common.errors import UserError, brief

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "window", "thinking"]
Capability = Literal["images", "loglikelihood", "sampling", "thinking", "always_thinks", "window", "batching"]
"""Capability of a generator beyond one greedy answer to a text.

`images`: it accepts images. `loglikelihood`: it computes the log-probability of choices. `sampling`: it draws several
completions. `thinking`: it generates a thought before the answer on request; `always_thinks`: it always does. `window`:
it has the attributes `window`, `too_long` and `past_window`. `batching`: it has the attributes `batch_tokens` and
`share_prefixes`.
"""

LEAST_TEMPERATURE = LEAST_TOP_P = 0.001  # float32 cannot represent the probabilities far below


@dataclass(frozen=True, slots=True)
class Turn:
    """Turn of a conversation.

    Attributes:
        role: role of the speaker.
        text: text of the turn.
        supervised: whether an answer is supervised; an unsupervised one is only context for later answers.
        thought: whether the text begins with a thought that the row holds separately from the answer.
    """

    role: Role
    text: str
    supervised: bool = True
    thought: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """Conversation up to the answer to generate.

    Attributes:
        turns: an optional system turn, then user and assistant in alternation, the user last. `<image>` in a user's
            text marks the place of an image.
        images: images in the order of their marks.
        response_prefix: given beginning of the answer, which is not part of the completion.
        name: name that decides, with seed and sample number, the random numbers of a completion, so that they do not
            depend on other prompts; None takes the prompt's position in the call.
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
        """Create a prompt of one user turn, after the system turn if one is given."""
        turns = (Turn("system", system),) if system is not None else ()
        return cls((*turns, Turn("user", text)), tuple(images), response_prefix, name)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling options of completions.

    Attributes:
        n: number of completions of each prompt.
        temperature: 0 takes the likeliest token each time; above 0, tokens are drawn, the more evenly the higher it is.
        top_p: draw only from the likeliest tokens that together have this probability (nucleus sampling, arXiv
            1904.09751, section 3.1).
        top_k: draw only from this number of likeliest tokens; 0 draws from all.
        min_p: draw only from tokens with at least this fraction of the likeliest token's probability (arXiv
            2407.01082).
        presence_penalty: value subtracted from the logit of each token that the completion already contains.
        repetition_penalty: divisor of positive logits, and factor of negative ones, of tokens that the prompt or the
            completion already contains (CTRL, arXiv 1909.05858, section 4.1).
        max_tokens: maximum number of tokens of a completion, without its thought.
        stop: strings that end a completion; the completion includes the first one found.
        thinking_budget: maximum number of tokens of a thought before the answer; 0 generates the answer directly.
        thinking_overrun: what follows a thought that exceeds the budget: `unparsed`, no answer; `close`, the mark that
            ends a thought, and the answer.
        seed: seed of all random numbers, with the prompt's name and the sample number; None draws a new one each time.
        logprobs: compute the log-probability of each completion.

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
        """Whether the likeliest token is chosen each time."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class Completion:
    """Text that a model generated after a prompt.

    Attributes:
        text: the answer, without the response prefix, up to and including the first stop string.
        thought: the thought before the answer, with the mark that ends a thought where there is one.
        finish_reason: `stop` at the end of the turn or a stop string, `length` at the maximum number of tokens,
            `window` at the end of the model's context window, `thinking` where the thought used up its budget and no
            answer followed.
        tokens: number of generated tokens, including those of the thought and the one that ended the completion.
        logprob: natural log-probability of these tokens under the model, before penalties and sampling options; None if
            it was not requested.
    """

    text: str
    thought: str = ""
    finish_reason: FinishReason = "stop"
    tokens: int = 0
    logprob: float | None = None

    @property
    def response(self) -> str:
        """Whole generated text: the thought, an empty line, and the answer."""
        return f"{self.thought}\n\n{self.text}" if self.thought and self.text else self.thought + self.text


@runtime_checkable
class Generator(Protocol):
    """Generator of completions: a model of mmtune, or any object with these members.

    Attributes:
        name: name for output and stored results.
        fingerprint: hash that changes with the weights and the template; decides whether stored completions are valid.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[Completion]]:
        """Generate `params.n` completions of each prompt.

        Prompts of one call may share images (the same object) and long prefixes; those that do are adjacent.
        """
        ...


class Scorer(Generator, Protocol):
    """Generator with the capability `loglikelihood`."""

    def loglikelihood(self, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]]) -> list[list[float]]:
        """Compute, for each prompt, the summed natural log-probability of each choice after the response prefix."""
        ...


def capabilities(generator: Any) -> frozenset[Capability]:
    """Return the capabilities that a generator declares; empty if it declares none."""
    return frozenset(getattr(generator, "capabilities", ()))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of a verifier for one completion.

    Attributes:
        score: from 0 (wrong) to 1 (right).
        answer: answer extracted from the completion; None if none was found.
        details: further values, by name.
        error: reason why the completion could not be judged; None if it was.

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
    """Verifier of completions, by a rule, a program, or a model."""

    @property
    def name(self) -> str: ...  # noqa: D102

    def verify(self, completion: Completion, reference: Any) -> Verdict:
        """Score a completion against the reference."""
        ...


class Selector(Protocol):
    """Selector of one among the completions of a prompt."""

    @property
    def name(self) -> str: ...  # noqa: D102

    def select(self, completions: Sequence[Completion], verdicts: Sequence[Verdict]) -> int:
        """Return the index of the chosen completion."""
        ...


class RowSource(Protocol):
    """Source of rows that are generated from a seed, not read from a file; version and seed are their fingerprint."""

    @property
    def version(self) -> str: ...  # noqa: D102

    def rows(self, seed: int) -> Iterator[Mapping[str, Any]]:
        """Generate the rows of a seed, the same ones each time."""
        ...


def _whole(name: str, value: Any, least: int) -> None:
    if _not_whole(value) or value < least:
        raise UserError(f"{name} {brief(repr(value))}: give a whole number of at least {least}")


def _not_whole(value: Any) -> bool:
    return isinstance(value, bool) or not isinstance(value, int)


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
