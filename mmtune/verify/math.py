"""Verifier that compares numbers and mathematical terms by value."""

from __future__ import annotations

from collections.abc import Sequence

from mmtune.interfaces import Verdict
from mmtune.verify.answer_verifier import AnswerVerifier
from mmtune.verify.comparison import term


class MathVerifier(AnswerVerifier):
    r"""Score 1 if the answer has the value of a gold answer, else 0.

    Numbers are compared as exact fractions, so 0.5 is 1/2 and \frac{1}{2}; other terms as text without LaTeX's layout,
    units of degree and per cent, and spaces. Unlike the script of MATH-Vision (Wang et al., 2024), nothing is
    transformed by computer algebra: 2\sqrt{2} is not \sqrt{8}. The detail `value` is the answer as it is compared.
    """

    name = "math"

    def compare(self, answer: str, golds: Sequence[str]) -> Verdict:  # noqa: D102
        said = term(answer)
        return Verdict(float(any(said == term(gold) for gold in golds)), answer, {"value": str(said)})
