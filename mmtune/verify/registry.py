"""Registry of the verifiers, by their names in task files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmtune.interfaces import Verifier
from mmtune.verify.exact import ExactVerifier
from mmtune.verify.math import MathVerifier
from mmtune.verify.vqa import VqaVerifier

VERIFIERS: dict[str, Callable[[Sequence[str]], Verifier]] = {
    verifier.name: verifier for verifier in (ExactVerifier, VqaVerifier, MathVerifier)
}
"""By name, what makes a verifier from the names of a task's extraction steps."""
