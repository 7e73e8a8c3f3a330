"""Verifier that scores the agreement with several annotators."""

from __future__ import annotations

from collections.abc import Sequence

from mmtune.interfaces import Verdict
from mmtune.verify.answer_verifier import AnswerVerifier
from mmtune.verify.normalize import vqa_normalise


class VqaVerifier(AnswerVerifier):
    """Compute VQA accuracy: min(annotators who agree / 3, 1), averaged over all ways to leave one annotator out.

    Antol et al., "VQA: Visual Question Answering" (ICCV 2015), section 3; the averaging over 10 choose 9 is on
    visualqa.org/evaluation.html. Both sides are normalized as described there. The details `agree` and `people`
    are the number of annotators who gave the answer, and the number of all annotators.
    """

    name = "vqa"

    def compare(self, answer: str, golds: Sequence[str]) -> Verdict:  # noqa: D102
        said = vqa_normalise(answer, ())
        others, agree = len(golds) - 1, sum(vqa_normalise(gold, ()) == said for gold in golds)
        without_one_who_agrees, without_another = min(max(agree - 1, 0) / 3, 1.0), min(agree / 3, 1.0)
        score = (agree * without_one_who_agrees + (others + 1 - agree) * without_another) / len(golds)
        return Verdict(score, answer, {"agree": agree, "people": len(golds)})
