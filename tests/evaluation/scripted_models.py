"""Models that answer from a script, and small data in the hub's column layout."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mmtune.interfaces import Completion, Prompt, SamplingParams

SHORT_ANSWERS = """
name: toy
version: 1
modality: language
dataset: {path: toy/toy, config: null, split: test}
prompt: "{{ question }}"
target: "{{ answer }}"
answer: short
max_tokens: 4
metrics: [accuracy]
"""
"""A task of the columns `question` and `answer`, from `toy/toy`."""


def picture(shade: int = 0) -> dict[str, Any]:
    """An image cell as the hub stores it."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 10, 20)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": f"{shade}.png"}


def write_rows(root: Path, path: str, config: str | None, split: str, rows: list[dict[str, Any]]) -> Path:
    file = root / "hub" / path / (config or "default") / f"{split}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


class Scripted:
    """Answers every prompt with `reply(prompt)`, finds a choice as likely as `like(prompt, choice)`; keeps what it was
    asked.
    """

    named = "scripted"
    capabilities = frozenset({"images", "loglikelihood", "batching"})

    def __init__(
        self,
        reply: Callable[[str], str],
        fingerprint: str = "one",
        like: Callable[[str, str], float] = lambda prompt, choice: -float(len(choice)),
    ) -> None:
        self.like, self.share_prefixes, self.batch_tokens = like, True, 4096
        self.name, self.fingerprint, self.reply = self.named, fingerprint, reply
        self.calls: list[list[str]] = []
        self.images: list[list[int]] = []
        self.options: dict[str, Any] = {}
        self.usage = {"prompt_tokens": 0, "generated_tokens": 0, "reused_tokens": 0, "tower_passes": 0}

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[Completion]]:
        texts = self._asked(prompts)
        self.options |= {"max_tokens": params.max_tokens, "stop": list(params.stop)}
        self.usage["generated_tokens"] += len(prompts)
        return [[Completion(self.reply(text))] for text in texts]

    def loglikelihood(self, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]]) -> list[list[float]]:
        asked = self._asked(prompts)
        self.compared = [list(texts) for texts in choices]
        return [[self.like(prompt, text) for text in texts] for prompt, texts in zip(asked, choices, strict=True)]

    def _asked(self, prompts: Sequence[Prompt]) -> list[str]:
        texts = [prompt.turns[-1].text for prompt in prompts]
        counts = [len(prompt.images) for prompt in prompts]
        assert [text.count("<image>") for text in texts] == counts
        (prefix,) = {prompt.response_prefix for prompt in prompts}
        self.options = {"response_prefix": prefix, "share_prefixes": self.share_prefixes}
        self.calls.append(texts)
        self.images.append(counts)
        self.photos = {id(photo) for prompt in prompts for photo in prompt.images}
        self.usage["prompt_tokens"] += sum(len(p.split()) for p in texts)
        self.usage["tower_passes"] += sum(counts)
        return texts

    @property
    def asked(self) -> int:
        return sum(map(len, self.calls))


BOOLQ = [
    {"question": f"is {n} an even number", "answer": n % 2 == 0, "passage": f"The number is {n}."} for n in range(10)
]
OPENBOOKQA = [
    {
        "id": str(n),
        "question_stem": f"What comes after {n}",
        "choices": {"text": [str(n + 1), str(n + 2), "don't know", "more"], "label": ["A", "B", "C", "D"]},
        "answerKey": "ABAB"[n % 4],
    }
    for n in range(6)
]
POPE = [
    {
        "id": str(n),
        "question_id": str(n),
        "question": f"Is there a thing {n} in the image?",
        "answer": "yes" if n % 3 == 0 else "no",
        "image_source": "x",
        "image": picture(n % 2),
        "category": ("random", "popular", "adversarial")[n % 3] if n < 9 else "random",
    }
    for n in range(12)
]


def small_data(root: Path) -> Path:
    """BoolQ, OpenBookQA and POPE."""
    write_rows(root, "google/boolq", None, "validation", BOOLQ)
    write_rows(root, "allenai/openbookqa", "main", "test", OPENBOOKQA)
    write_rows(root, "lmms-lab/POPE", None, "test", POPE)
    return root


SUITE = """
name: small
tasks: [boolq, openbookqa, pope]
"""
