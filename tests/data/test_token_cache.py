"""Tokens from the cache are those made fresh, whatever happened to its files."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_builders import make_byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtune.common.errors import RowError
from mmtune.data import token_store as token_cache
from mmtune.data.conversation import Conversation
from mmtune.data.datamodule import InstructionData
from mmtune.data.encoding import ModelInputs, tokenise
from mmtune.data.mixture import Mixture
from mmtune.data.rendering.templates import TEMPLATES, Template, tokenizer_template
from mmtune.data.token_store import cached_tokens, fingerprint, row_key
from mmtune.interfaces import Turn

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30) | st.sampled_from(
    ["<image>", "a <image> b", "\x00", "user 1 a", "<|im_end|>"]
)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3)
CONVERSATIONS = st.lists(st.tuples(st.none() | TEXT, PAIRS), max_size=6)


def conversation(said: list[tuple[str, str]], system: str | None = None, row: int = 1) -> Conversation:
    turns = [Turn("system", system)] if system is not None else []
    for question, answer in said:
        turns += [Turn("user", question), Turn("assistant", answer)]
    return Conversation(tuple(turns), (), "rows.jsonl", row)


ROWS = [conversation([(f"question {n}", "answer " * n)], row=n) for n in range(1, 40)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Conversation]:
    """The conversations that were tokenised rather than found."""
    rows: list[Conversation] = []

    def note(row: Conversation, inputs: ModelInputs) -> Any:
        rows.append(row)
        return tokenise(row, inputs)

    monkeypatch.setattr(token_cache, "tokenise", note)
    return rows


def use(inputs: ModelInputs, rows: list[Conversation] = ROWS) -> None:
    """Get the rows' tokens by way of the cache, and compare."""
    with cached_tokens(inputs) as tokens:
        for row in rows:
            ids, supervised = tokens(row)
            fresh_ids, fresh_supervised = tokenise(row, inputs)
            assert ids.dtype == np.int32
            assert supervised.dtype == bool
            np.testing.assert_array_equal(ids, fresh_ids)
            np.testing.assert_array_equal(supervised, fresh_supervised)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@settings(max_examples=40)
@given(runs=st.lists(CONVERSATIONS, min_size=2, max_size=3))
def test_cached_tokens_are_those_made_fresh(photo_inputs: ModelInputs, runs: Any) -> None:
    with tempfile.TemporaryDirectory() as own, pytest.MonkeyPatch.context() as patched:
        patched.setenv("MMTUNE_CACHE", own)
        for rows in [*runs, [row for run in runs for row in run]]:
            use(photo_inputs, [conversation(said, system) for system, said in rows])


@given(one=CONVERSATIONS, other=CONVERSATIONS)
def test_keys_are_equal_only_for_equal_turns(one: Any, other: Any) -> None:
    for left in [conversation(said, system) for system, said in one]:
        for right in [conversation(said, system, row=2) for system, said in other]:
            assert (row_key(left) == row_key(right)) == (left.turns == right.turns)


def test_a_second_run_tokenises_only_what_is_new(
    text_inputs: ModelInputs, made: list[Conversation], folder: Path
) -> None:
    use(text_inputs, ROWS[:30])
    assert made == ROWS[:30]
    use(text_inputs, ROWS[:30])
    assert len(files(folder)) == 1
    made.clear()
    use(text_inputs, [*ROWS, *ROWS])
    assert made == ROWS[30:]
    assert len(files(folder)) == 2


def test_many_rows_are_written_as_they_come(
    text_inputs: ModelInputs, made: list[Conversation], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "_FILE", 10)
    monkeypatch.setattr(token_cache, "_BATCH", 3)
    use(text_inputs)
    assert len(files(folder)) == 4
    made.clear()
    use(text_inputs)
    assert made == []


def test_tokens_are_views_of_the_mapped_file(text_inputs: ModelInputs) -> None:
    use(text_inputs)
    with cached_tokens(text_inputs) as tokens:
        for array in tokens(ROWS[3]):
            assert not array.flags.owndata
            assert not array.flags.writeable


@pytest.mark.parametrize("pieces", [1, 3])
@settings(max_examples=30)
@given(data=st.data())
def test_a_damaged_file_is_never_trusted(text_inputs: ModelInputs, data: st.DataObject, pieces: int) -> None:
    with tempfile.TemporaryDirectory() as own, pytest.MonkeyPatch.context() as patched:
        patched.setenv("MMTUNE_CACHE", own)
        for piece in range(pieces):
            use(text_inputs, ROWS[piece::pieces])
        path = data.draw(st.sampled_from(files(Path(own))))
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans(), label="truncated"):
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        else:
            place = data.draw(st.integers(0, len(content) - 1))
            content[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        use(text_inputs)
        assert path.read_bytes() != content if path.exists() else True
        whole = files(Path(own))
        use(text_inputs)  # and it has been replaced
        assert files(Path(own)) == whole


def test_a_file_that_is_none_of_ours(text_inputs: ModelInputs, folder: Path, made: list[Conversation]) -> None:
    use(text_inputs)
    [file] = files(folder)
    content = file.read_bytes()
    file.with_name("0.arrow").write_bytes(b"")
    file.with_name("1.arrow").write_text("no arrow")
    file.with_name("f.arrow").write_bytes(content)  # sound, under another name
    made.clear()
    use(text_inputs)
    assert made == []
    assert file.read_bytes() == content


def test_everything_that_decides_tokens_decides_the_folder(byte_tokenizer: Any) -> None:
    def changed(change: Callable[[Any], None]) -> Any:
        tokenizer = make_byte_tokenizer()
        change(tokenizer)
        return tokenizer

    chatml = TEMPLATES["chatml"]
    other = changed(lambda t: setattr(t, "chat_template", t.chat_template.replace("m['role']", "m['role']|upper")))
    ways = [
        ModelInputs(byte_tokenizer, chatml),
        ModelInputs(byte_tokenizer, chatml, tokens_per_image=4),
        ModelInputs(byte_tokenizer, TEMPLATES["vicuna_v1"]),
        ModelInputs(byte_tokenizer, dataclasses.replace(chatml, default_system="Be brief.")),
        ModelInputs(make_byte_tokenizer(merges=[("a", "b")]), chatml),
        ModelInputs(changed(lambda t: t.add_special_tokens({"bos_token": "<s>"})), chatml),
        ModelInputs(byte_tokenizer, tokenizer_template(byte_tokenizer)),
        ModelInputs(other, tokenizer_template(other)),
    ]
    assert len({fingerprint(way) for way in ways}) == len(ways)
    padding = changed(lambda t: t(["a", "abc"], padding=True))
    assert fingerprint(ModelInputs(padding, chatml)) == fingerprint(ways[0])
    assert fingerprint(ModelInputs(other, chatml)) == fingerprint(ways[0])  # its template is not used


def test_the_folder_is_the_same_in_every_process(text_inputs: ModelInputs) -> None:
    code = (
        "from data_builders import make_byte_tokenizer; from mmtune.data.encoding import ModelInputs;"
        "from mmtune.data.rendering.templates import TEMPLATES; from mmtune.data.token_store import fingerprint;"
        "print(fingerprint(ModelInputs(make_byte_tokenizer(), TEMPLATES['chatml'])))"
    )
    said = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True)
    assert said.stdout.decode().strip() == fingerprint(text_inputs)


def test_a_template_written_by_the_user_is_not_kept(byte_tokenizer: Any, folder: Path) -> None:
    own = Template("chatml", lambda out, system, turns: out.answer(turns[-1].text), "")
    use(ModelInputs(byte_tokenizer, own))
    assert not folder.exists()


def test_rows_before_one_that_stops_the_run_are_kept(text_inputs: ModelInputs, made: list[Conversation]) -> None:
    def stopped() -> None:
        with cached_tokens(text_inputs) as tokens:
            tokens(ROWS[0])
            raise RowError("rows.jsonl, row 2: of no use")

    with pytest.raises(RowError):
        stopped()
    made.clear()
    use(text_inputs, ROWS[:1])
    assert made == []


def _process(rows: list[Conversation]) -> None:
    for first in (0, 5, 10):
        use(ModelInputs(make_byte_tokenizer(), TEMPLATES["chatml"]), rows[first:])


def test_several_processes_at_once(text_inputs: ModelInputs, folder: Path, made: list[Conversation]) -> None:
    with ProcessPoolExecutor(3, get_context("fork")) as pool:
        list(pool.map(_process, [ROWS[:20], ROWS[:20], ROWS[10:]]))
    use(text_inputs)
    assert made == []
    assert all(token_cache.sha256_file(path) == path.stem for path in files(folder))


@pytest.mark.parametrize("obstacle", ["a file in its place", "a full disk", "no home"])
def test_what_cannot_be_kept_stops_nothing(
    obstacle: str, text_inputs: ModelInputs, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def refuse(*_: Any) -> Any:
        raise OSError(28, "No space left on device") if obstacle == "a full disk" else RuntimeError("no home")

    if obstacle == "a file in its place":
        folder.parent.mkdir()
        folder.write_text("")
    else:
        monkeypatch.setattr(token_cache, "sha256_file" if obstacle == "a full disk" else "cache_dir", refuse)
    monkeypatch.setattr(token_cache, "_FILE", 10)
    use(text_inputs)
    said = capsys.readouterr().err
    assert said.startswith("The tokens are not kept for later runs: ")
    assert said.count("\n") == 1
    assert "MMTUNE_CACHE names another folder" in said
    assert obstacle != "a full disk" or files(folder) == []


def test_training_data_is_the_same_with_and_without(write_lines: Any, text_inputs: ModelInputs, folder: Path) -> None:
    source = write_lines([{"prompt": f"q{n}", "completion": "a" * n} for n in range(1, 20)])

    def batches(**options: bool) -> list[Any]:
        data = InstructionData(Mixture([source]), max_length=64, inputs=text_inputs, **options)
        data.setup()
        return [(b.input_ids.tolist(), b.targets.tolist(), b.where) for b in data.train_dataloader()]

    without = batches(cache_tokens=False)
    assert not folder.exists()
    assert without == batches() == batches()
    assert len(files(folder)) == 1
