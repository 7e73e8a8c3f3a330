"""From what a model said to an answer, and from an answer to its mark: small pure functions, named in task files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from mmtune.verify.comparison import plain, same_answer, term
from mmtune.verify.contractions import CONTRACTIONS
from mmtune.verify.option_names import (
    bare_letter,
    letter_said,
    option_named,
    option_quoted,
    option_with_most_words,
)

Kind = Literal["letter", "yes_no", "short"]
KINDS: tuple[str, ...] = get_args(Kind)
YES_NO = ("yes", "no")

Step = Callable[[str, Sequence[str]], str]
"""A step: (text so far, the options' texts) to text. It never raises."""
Mark = Callable[[str, Sequence[str]], float]
"""How good an answer is, 0 to 1: (the answer, all gold answers that count) to a mark. It never raises."""

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = {word: str(value) for value, word in enumerate(_NUMBERS)} | {"none": "0"}
_CLAUSE_END = re.compile(r'[.,:"\n\r]')
_LINE_END = re.compile(r'["\n\r]')
_LEADING_LETTER = re.compile(r"\s*\(?([A-Za-z])(?:[.:)]|\s*$)")

# VQA: all periods but decimal ones go, commas inside numbers too, and these marks become spaces
_VQA_GONE = re.compile(r"\.(?!\d)|(?<=\d),(?=\d)")
_VQA_SPACES = str.maketrans(dict.fromkeys(';/[]"{}()=+\\_-><@`,?!', " "))
_VQA_WORDS = {**_DIGITS, "ten": "10", **CONTRACTIONS}


def first_clause(text: str, options: Sequence[str]) -> str:
    """Cut at the first of `.` `,` `:` `"` or a line break."""
    return _CLAUSE_END.split(text, maxsplit=1)[0].strip()


def first_line(text: str, options: Sequence[str]) -> str:
    """Cut at the first `"` or line break, for answers that may hold other punctuation, such as 8:00 or 3.5."""
    return _LINE_END.split(text, maxsplit=1)[0].strip()


def leading_letter(text: str, options: Sequence[str]) -> str:
    """An option's letter that begins the text, as in `B: two dogs`, `(B) two dogs` or `b.`, is the answer."""
    found = _LEADING_LETTER.match(text)
    return (bare_letter(found[1], options) if found else None) or text


def option_text(text: str, options: Sequence[str]) -> str:
    """The text of an option becomes its letter; see `option_named`. What is a valid letter already stays one."""
    return option_named(text, options) or text


def option_words(text: str, options: Sequence[str]) -> str:
    """An option all of whose words were said becomes its letter; of several, the one with most words, if it is one."""
    return letter_said(text, options) or option_with_most_words(text, options) or text


def true_false(text: str, options: Sequence[str]) -> str:
    """`true` becomes yes, `false` no."""
    return {"true": "yes", "false": "no"}.get(plain(text), text)


def number_words(text: str, options: Sequence[str]) -> str:
    """An answer that is one of none, zero, one … nine becomes a digit."""
    return _DIGITS.get(plain(text), text)


def vqa_normalise(text: str, options: Sequence[str]) -> str:
    """As answers about photos are compared (the list under "Evaluation Code" on visualqa.org/evaluation.html).

    Lower case; periods go unless they are decimal; number words become digits; articles go; contractions get their
    apostrophe; punctuation becomes a space, or nothing for a comma between digits. Apostrophes and colons stay. Which
    marks are punctuation the page leaves open: here those of its authors' script.
    """
    words = _VQA_GONE.sub("", text.lower()).translate(_VQA_SPACES).split()
    return " ".join(_VQA_WORDS.get(word, word) for word in words if word not in ("a", "an", "the"))


STEPS: dict[str, Step] = {
    step.__name__: step
    for step in (
        first_clause,
        first_line,
        leading_letter,
        option_text,
        option_words,
        true_false,
        number_words,
        vqa_normalise,
    )
}
_BY_TEXT = {"option_text", "option_words"}  # these name an option by its text
# these say the same in other words, so a short gold answer goes through them too
_REWORDING = {"true_false", "number_words", "vqa_normalise"}


def parse(response: str, steps: Sequence[str], kind: Kind, options: Sequence[str]) -> str | None:
    """The answer in a response.

    Args:
        response: the raw text after the response_prefix.
        steps: names of extraction steps, applied in order.
        kind: what counts as an answer: a letter of the options, yes or no, or any words.
        options: the options' texts; needed for letters.

    Returns:
        A capital letter, `yes` or `no`, or text; None where there is no valid answer ("unparsed").
    """
    # the text of an option may hold marks at which a step would cut it
    if kind == "letter" and _BY_TEXT.intersection(steps) and (letter := option_quoted(response, options)):
        return letter
    text = response
    for step in steps:
        text = STEPS[step](text, options)
    if kind == "letter":
        return letter_said(text, options)
    said = plain(text)
    if kind == "yes_no":
        return said if said in YES_NO else None
    return text.strip() if said else None


def exact(answer: str, references: Sequence[str]) -> float:
    """1 for a gold answer, as `same_answer` compares; else 0."""
    return float(any(same_answer(answer, reference) for reference in references))


def vqa(answer: str, references: Sequence[str]) -> float:
    """VQA accuracy: min(people who said it / 3, 1), averaged over all ways to leave one person out.

    Antol et al., "VQA: Visual Question Answering" (ICCV 2015), section 3; the averaging over 10 choose 9 is on
    visualqa.org/evaluation.html. Both sides are normalised as described there.
    """
    said = vqa_normalise(answer, ())
    others, agree = len(references) - 1, sum(vqa_normalise(r, ()) == said for r in references)
    without_one_who_agrees, without_another = min(max(agree - 1, 0) / 3, 1.0), min(agree / 3, 1.0)
    return (agree * without_one_who_agrees + (others + 1 - agree) * without_another) / len(references)


def math(answer: str, references: Sequence[str]) -> float:
    r"""1 for the value of a gold answer; else 0.

    Numbers are compared as exact fractions, so 0.5 is 1/2 and \frac{1}{2}; other terms as text without LaTeX's layout,
    units of degree and per cent, and spaces. Unlike the script of MATH-Vision (Wang et al., 2024), nothing is
    transformed by computer algebra: 2\sqrt{2} is not \sqrt{8}.
    """
    said = term(answer)
    return float(any(said == term(reference) for reference in references))


MARKS: dict[str, Mark] = {"accuracy": exact, "vqa_accuracy": vqa, "math_accuracy": math}
"""How answers are marked, by the name of the metric that is the mean of these marks."""


def mark(
    prediction: str | None, references: Sequence[str], steps: Sequence[str], kind: Kind, marking: str = "accuracy"
) -> float:
    """The mark of a parsed answer, 0 to 1; an unparsed one has 0.

    Args:
        prediction: what `parse` found.
        references: all gold answers that count, at least one.
        steps: the task's extraction steps; those that reword are applied to short gold answers too.
        kind: what counts as an answer.
        marking: one of `MARKS`.
    """
    if prediction is None:
        return 0.0
    if kind == "short":
        for step in steps:
            if step in _REWORDING:
                references = [STEPS[step](reference, ()) for reference in references]
    return MARKS[marking](prediction, references)
