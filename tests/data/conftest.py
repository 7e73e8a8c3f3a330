"""What the data tests share: files, tokenizers and what stands in for a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from data_builders import ROWS, fake_preprocess, make_byte_tokenizer
from hypothesis import HealthCheck, settings

from mmtune.data.conversation import Conversation
from mmtune.data.encoding import ModelInputs
from mmtune.data.rendering.sentencepiece import build_tokenizer
from mmtune.data.rendering.templates import TEMPLATES
from mmtune.data.sources.readers import BadRows, read_conversations

# how fast an example runs says more of the machine than of the code
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def llama_path() -> Path:
    """A real sentencepiece model of Llama's kind."""
    package = pytest.importorskip("mistral_common", reason="pip install mistral-common brings the tokenizer")
    return Path(package.__file__).parent / "data" / "tokenizer.model.v1"


@pytest.fixture(scope="session")
def llama_tokenizer(llama_path: Path) -> Any:
    return build_tokenizer(llama_path, legacy=False)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Any:
    return make_byte_tokenizer()


@pytest.fixture(scope="session")
def text_inputs(byte_tokenizer: Any) -> ModelInputs:
    return ModelInputs(byte_tokenizer, TEMPLATES["chatml"])


@pytest.fixture(scope="session")
def photo_inputs(byte_tokenizer: Any) -> ModelInputs:
    return ModelInputs(byte_tokenizer, TEMPLATES["chatml"], tokens_per_image=4, preprocess=fake_preprocess)


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., str]:
    """Write rows as JSON Lines (text stands as it is), and return the path."""

    def write(rows: Iterable[Any], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def read(write_lines: Callable[..., str]) -> Callable[[Any], Conversation]:
    def one(row: Any) -> Conversation:
        [conversation] = read_conversations(write_lines([row]))
        return conversation

    return one


@pytest.fixture
def refused(write_lines: Callable[..., str]) -> Callable[[Any], str]:
    def message(row: Any) -> str:
        source = write_lines([row, ROWS["Alpaca"]])
        skipping = BadRows("skip")
        assert [c.row for c in read_conversations(source, bad_rows=skipping)] == [2]
        [said] = skipping.skipped
        assert said.startswith(f"{source}, row 1: ")
        assert "\n" not in said
        return said.removeprefix(f"{source}, row 1: ")

    return message
