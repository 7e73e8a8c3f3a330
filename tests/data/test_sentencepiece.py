"""The fast tokenizer gives sentencepiece's own ids, and its text back."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import mistral_common
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmtune.common.errors import UserError
from mmtune.data.rendering.sentencepiece import build_tokenizer
from mmtune.models.language import load_tokenizer

MODEL = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
# text that makes trouble: runs of spaces, the space piece itself, line breaks, bytes without a piece
PARTS = st.sampled_from(
    [" ", "  ", "    ", "\n", "\t", "▁", "\u00a0", "<0x0A>", "é", "🚀", "漢字", "שלום", "don't", "USER:"]
)
SPECIAL = ("<s>", "</s>", "<unk>")
WORDS = (
    st.lists(PARTS | st.text(max_size=6) | st.text("ab 1.", max_size=8), max_size=12)
    .map("".join)
    .filter(lambda text: not any(token in text for token in SPECIAL))
)


@functools.cache
def library() -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(MODEL))


@pytest.mark.parametrize("legacy", [True, False])
@settings(max_examples=250, deadline=None)
@given(text=WORDS)
@example(text="")
@example(text=" ")
@example(text="      x  y ")
@example(text="\x00")
def test_ids_are_the_librarys(legacy: bool, text: str) -> None:
    ours = build_tokenizer(MODEL, legacy=legacy)(text, add_special_tokens=False)["input_ids"]
    if any(token in text for token in SPECIAL):
        return
    assert ours == library().encode(text)


@pytest.mark.parametrize("legacy", [True, False])
@settings(max_examples=100, deadline=None)
@given(parts=st.lists(WORDS, min_size=2, max_size=4))
def test_special_tokens_split_the_text(legacy: bool, parts: list[str]) -> None:
    """After a special token, legacy text begins with a space piece of its own; the other kind does not."""
    ours = build_tokenizer(MODEL, legacy=legacy)("</s>".join(parts), add_special_tokens=False)["input_ids"]
    expected: list[int] = []
    for number, part in enumerate(parts):
        if number:
            expected.append(library().eos_id())
        if not part:
            continue
        if legacy or not number:
            expected += library().encode(part)
        else:
            # the library always puts a space first; behind a character of its own it can be cut off again
            ids = library().encode("\n" + part)
            newline = library().encode("\n")
            assert ids[: len(newline)] == newline
            expected += ids[len(newline) :]
    assert ours == expected


@settings(max_examples=200, deadline=None)
@given(text=WORDS.filter(lambda text: "▁" not in text))
def test_decoding_gives_the_text_back(text: str) -> None:
    tokenizer = build_tokenizer(MODEL, legacy=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@settings(max_examples=200, deadline=None)
@given(text=WORDS)
def test_offsets_cover_the_text_in_order(text: str) -> None:
    encoding = build_tokenizer(MODEL, legacy=False)(text, add_special_tokens=False, return_offsets_mapping=True)
    reached = 0
    for start, end in encoding["offset_mapping"]:
        assert start <= reached <= max(end, reached)
        assert start <= end
        reached = max(reached, end)
    assert reached == len(text)


def test_the_start_marker_comes_first_and_names_are_kept() -> None:
    tokenizer = build_tokenizer(MODEL, legacy=True, name="vicuna")
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id == library().bos_id()
    assert tokenizer.eos_token == "</s>"
    assert tokenizer.name_or_path == "vicuna"


def test_a_file_that_is_changed_in_its_place_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    shutil.copy(MODEL, path)
    build_tokenizer(path, legacy=True)
    path.write_text("hello")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        build_tokenizer(path, legacy=True)


@pytest.mark.parametrize(
    ("config", "added", "named"),
    [
        ({}, {"<|im_end|>": 32000}, "the token '<|im_end|>'"),
        ({"added_tokens_decoder": {"32001": {"content": "<pad>", "special": True}}}, {}, "the token '<pad>'"),
        ({"eos_token": {"content": "<s>"}}, {}, "eos_token '<s>'"),
        ({"add_bos_token": False}, {}, "add_bos_token false"),
        ({"add_eos_token": True}, {}, "add_eos_token true"),
        ({"eos_token": "</s>", "add_bos_token": True, "added_tokens_decoder": {"2": {"content": "</s>"}}}, {}, None),
        ({"bos_token": None, "pad_token": "<unk>"}, {"<s>": 1}, None),
    ],
)
def test_what_stands_beside_the_file_is_honored_or_named(
    config: dict[str, Any], added: dict[str, int], named: str | None, tmp_path: Path
) -> None:
    shutil.copy(MODEL, tmp_path / "tokenizer.model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 32000}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    if named is None:
        assert load_tokenizer(str(tmp_path)).eos_token == "</s>"
        return
    with pytest.raises(UserError, match=f"the tokenizer has {re.escape(named)}, which is not read beside"):
        load_tokenizer(str(tmp_path))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with pytest.raises(UserError, match="not a sentencepiece model"):
        build_tokenizer(path, legacy=True)
    path.write_text("hello")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        build_tokenizer(path, legacy=False)


def test_another_kind_of_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(f"some words to learn {i}" for i in range(200)))
    files = {"input": str(tmp_path / "text.txt"), "model_prefix": str(tmp_path / "t5")}
    sentencepiece.SentencePieceTrainer.train(**files, vocab_size=40, model_type="unigram", minloglevel=2)
    with pytest.raises(UserError, match="not of Llama's kind"):
        build_tokenizer(tmp_path / "t5.model", legacy=False)
