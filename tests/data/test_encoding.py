"""Tokens, and which of them are learnt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from data_builders import fake_preprocess, make_byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtune.common.errors import RowError
from mmtune.data.conversation import Conversation
from mmtune.data.encoding import IMAGE_TOKEN, ModelInputs, as_example, encode, encode_text, tokenise
from mmtune.data.rendering.templates import TEMPLATES, Rendered
from mmtune.interfaces import Turn

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda text: "<" not in text)


def conversation(*texts: str, images: int = 0, system: str | None = None) -> Conversation:
    turns = [Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    if system is not None:
        turns.insert(0, Turn("system", system))
    return Conversation(tuple(turns), tuple(bytes([i]) for i in range(images)), "rows.jsonl", 3)


@pytest.mark.parametrize("name", ["vicuna_v1", "llama_2", "chatml"])
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, min_size=2, max_size=6), photo=st.booleans())
def test_a_byte_is_learnt_exactly_if_the_assistant_said_it(name: str, texts: list[str], photo: bool) -> None:
    """With one token per byte, the learnt bytes are the answers' bytes."""
    texts = texts[: len(texts) // 2 * 2]
    if photo:
        texts[0] = f"<image>{texts[0]}"
    tokenizer = make_byte_tokenizer()
    rendered = TEMPLATES[name].render(conversation(*texts, images=photo))
    ids, supervised = encode_text(rendered, tokenizer, tokens_per_image=3)
    assert len(ids) == len(supervised)
    assert int((ids == IMAGE_TOKEN).sum()) == 3 * photo
    assert not supervised[ids == IMAGE_TOKEN].any()
    learnt = tokenizer.decode(ids[supervised], skip_special_tokens=False)
    assert learnt == "".join(rendered.text[start:end] for start, end in rendered.answers)
    said = tokenizer.decode(ids[ids != IMAGE_TOKEN], skip_special_tokens=False)
    assert said == rendered.text.replace("<image>", "")


@pytest.mark.parametrize("trim", [True, False])
def test_white_space_before_an_answer_is_not_learnt_whatever_the_offsets(trim: bool) -> None:
    """Byte-level tokenizers may trim white space from offsets, which leaves such tokens without a width."""
    tokenizer = make_byte_tokenizer(trim_offsets=trim, merges=[("Ċ", "Ċ")])
    for text, answer in [
        ("ask\nsay", "say"),
        ("ask\n\nsay", "say"),
        ("a \n", "\n"),
        ("a  say it\n", "say it\n"),
    ]:
        start = len(text) - len(answer)
        ids, supervised = encode_text(Rendered(text, ((start, len(text)),)), tokenizer)
        assert tokenizer.decode(ids[supervised]) == answer
        assert tokenizer.decode(ids[~supervised]) == text[:start]


def test_the_start_marker_is_added_once_and_not_learnt(llama_tokenizer: Any) -> None:
    rendered = Rendered("<image>a<image>b", ((0, 16),))
    ids, supervised = encode_text(rendered, llama_tokenizer, tokens_per_image=2)
    assert ids.tolist().count(llama_tokenizer.bos_token_id) == 1
    assert ids[0] == llama_tokenizer.bos_token_id
    assert ids[1:3].tolist() == [IMAGE_TOKEN] * 2
    assert not supervised[0]


def test_types_and_places(byte_tokenizer: Any) -> None:
    inputs = ModelInputs(byte_tokenizer, TEMPLATES["chatml"], 4, fake_preprocess)
    example = encode(conversation("<image> what?", "that", images=1), inputs, 100)
    assert example.input_ids.dtype == np.int32
    assert example.supervised.dtype == bool
    assert example.images == (b"\x00",)
    assert example.where == "rows.jsonl, row 3"
    assert len(example) == len(example.input_ids)


@pytest.mark.parametrize(
    ("texts", "photos", "max_length", "message"),
    [
        (("<image>a", "b"), 1, 100, "has a photo, but the model has no vision tower"),
        (("a" * 200, "b"), 0, 100, "tokens, and the answer would be cut off at --data.max_length 100"),
    ],
)
def test_rows_that_cannot_be_encoded(
    texts: tuple[str, ...], photos: int, max_length: int, message: str, text_inputs: ModelInputs
) -> None:
    with pytest.raises(RowError) as error:
        encode(conversation(*texts, images=photos), text_inputs, max_length)
    assert message in str(error.value)
    assert str(error.value).startswith("rows.jsonl, row 3: ")


def test_the_longest_row_that_fits_is_kept(text_inputs: ModelInputs) -> None:
    row = conversation("ask", "say")
    length = len(encode(row, text_inputs, 1000))
    assert len(encode(row, text_inputs, length)) == length
    with pytest.raises(RowError):
        encode(row, text_inputs, length - 1)


@given(
    said=st.lists(st.tuples(TEXT.filter(bool), TEXT.filter(str.strip)), min_size=1, max_size=3),
    photos=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    max_length=st.integers(1, 120),
)
def test_a_row_is_cut_at_its_end_and_nowhere_else(
    said: list[tuple[str, str]], photos: list[int], max_length: int, photo_inputs: ModelInputs
) -> None:
    texts = [t for (ask, say), n in zip(said, photos, strict=False) for t in ("<image>" * n + ask, say)]
    row = conversation(*texts, images=sum(photos[: len(said)]))
    whole_ids, whole_supervised = tokenise(row, photo_inputs)
    message = ""
    if (whole_ids[:max_length] == IMAGE_TOKEN).sum() % 4:
        message = "would cut through a photo"
    elif not whole_supervised[1:max_length].any():
        message = "would have no answer left"
    if message:
        with pytest.raises(RowError, match=message):
            as_example(row, (whole_ids, whole_supervised), photo_inputs, max_length, truncate=True)
        return
    cut = as_example(row, (whole_ids, whole_supervised), photo_inputs, max_length, truncate=True)
    assert cut.input_ids.tolist() == whole_ids[:max_length].tolist()
    assert cut.supervised.tolist() == whole_supervised[:max_length].tolist()
    assert cut.supervised[1:].any()
    assert len(cut) + cut.cut == len(whole_ids)
    assert int((cut.input_ids == IMAGE_TOKEN).sum()) == 4 * len(cut.images)
    assert cut.images == row.images[: len(cut.images)]


def test_long_text_brings_no_warning(byte_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    byte_tokenizer.model_max_length = 8
    encode_text(Rendered("a" * 100, ()), byte_tokenizer)
    assert not caplog.records
