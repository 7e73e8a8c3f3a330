"""Verifiers by the names that task files give them."""

from __future__ import annotations

from mmtune.verify.answer_verifier import AnswerVerifier
from mmtune.verify.exact import ExactVerifier
from mmtune.verify.math import MathVerifier
from mmtune.verify.vqa import VqaVerifier

VERIFIERS: dict[str, type[AnswerVerifier]] = {
    verifier.name: verifier for verifier in (ExactVerifier, VqaVerifier, MathVerifier)
}
