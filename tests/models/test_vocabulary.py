"""Tokenizers and embeddings of different sizes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from mmtune.cli.main import main
from mmtune.common.errors import RowError, UserError
from mmtune.data.conversation import Conversation
from mmtune.data.encoding import encode
from mmtune.generation.chat import Chat
from mmtune.generation.generator import VisionLanguageModel
from mmtune.interfaces import Turn
from mmtune.models.decoding.stopping import StopConditions, StreamDecoder
from mmtune.models.language import load_tokenizer
from mmtune.models.spec import ModelSpec

Change = Callable[[PreTrainedTokenizerFast], object]


def with_tokenizer(llama: Path, folder: Path, change: Change) -> Path:
    """The same model, its tokenizer changed."""
    shutil.copytree(llama, folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def larger(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("larger") / "model"
    return with_tokenizer(llama, folder, lambda tokenizer: tokenizer.add_tokens(["<extra>"]))


def commands(model: Path, folder: Path) -> dict[str, list[str]]:
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"question": "a", "answer": "b"}) + "\n")
    numbers = ["--rows=4", "--text_tokens=9", "--answer_tokens=3"]
    training = [f"--model.language={model}", "--model.template=chatml"]
    return {
        "fit": [*training, f"--data.train.text=[{rows}]", f"--out={folder / 'run'}", "--trainer.accelerator=cpu"],
        "plan": [*training, f"--data.train.text=[{rows}]"],
        "plan of numbers": [*training, *numbers],
        "eval": [f"--model={model}", "--suite=quickstart", f"--out={folder / 'eval'}"],
        "chat": [f"--model={model}"],
        "export": [str(model), "--to=merged", f"--out={folder / 'export'}"],
        "data": [str(rows), f"--tokenizer={model}"],
    }


@pytest.mark.parametrize("command", ["fit", "plan", "plan of numbers", "eval", "chat", "export", "data"])
@pytest.mark.parametrize("kind", ["added", "config"])
def test_a_larger_tokenizer_is_refused_by_every_command(
    command: str, kind: str, llama: Path, larger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, token, number, rows = larger, "<extra>", 259, 259
    if kind == "config":  # the embedding lacks the row of a token that was always there
        model = tmp_path / "short"
        shutil.copytree(llama, model)
        short = AutoModelForCausalLM.from_pretrained(llama)
        short.resize_token_embeddings(258)
        short.save_pretrained(model)
        token, number, rows = "<|im_end|>", 258, 258
    assert main([command.split()[0], *commands(model, tmp_path)[command]]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmtune: error:")]
    assert len(error) == 1
    assert (
        f"it has {number + 1} tokens, and the embedding {rows} rows, none for '{token}' with the id {number}"
        in error[0]
    )
    assert f"resize_token_embeddings({number + 1})" in error[0]
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_padded_embedding_is_fine(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "padded"
    shutil.copytree(llama, folder)
    padded = AutoModelForCausalLM.from_pretrained(llama)
    padded.resize_token_embeddings(320)
    padded.save_pretrained(folder)
    load_tokenizer(str(folder))
    # the model says an id that is no token: nothing is written for it
    model = VisionLanguageModel.assemble(ModelSpec(str(folder), template="chatml"))
    says = torch.nn.Linear(64, 320)
    torch.nn.init.zeros_(says.weight)
    with torch.no_grad():
        says.bias.zero_()[300] = 1.0
    model.language.lm_head = says
    assert model.answer(["a", "bc"], max_tokens=60) == ["", ""]
    assert model.usage["generated_tokens"] == 120
    assert model.answer(["a"], max_tokens=60, temperature=1.0, top_k=1) == [""]
    assert "".join(Chat(model).say("a")) == ""


@pytest.mark.parametrize("at", [0, 5, 40, 59])
def test_ids_without_a_token_say_nothing(llama: Path, at: int) -> None:
    tokenizer = load_tokenizer(str(llama))
    ids = tokenizer("some words, and after them some more of these words: é, ü, ß")["input_ids"]
    answer, plain = (StreamDecoder(StopConditions(500, [], [], ""), tokenizer) for _ in range(2))
    for place, token in enumerate(ids):
        plain.append(token)
        if place == at:
            answer.append(9000)
        answer.append(token)
        assert answer.text == plain.text
    assert answer.tokens == plain.tokens + 1


@pytest.fixture(scope="module")
def padding_beyond(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> VisionLanguageModel:
    """As Llama 2 is often found: the token for padding has no row."""

    def change(tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})

    folder = with_tokenizer(llama, tmp_path_factory.mktemp("padding") / "model", change)
    return VisionLanguageModel.assemble(ModelSpec(str(folder), template="chatml"))


def test_a_token_for_padding_needs_no_row(padding_beyond: VisionLanguageModel) -> None:
    assert padding_beyond.answer(["a", "a longer one"], max_tokens=3, temperature=1.0, top_k=1) == (
        padding_beyond.answer(["a", "a longer one"], max_tokens=3)
    )


def test_text_that_spells_a_token_without_a_row_is_refused(padding_beyond: VisionLanguageModel) -> None:
    with pytest.raises(UserError, match=r"spells '\[PAD\]', token 259, and the model's embedding has 259 rows"):
        padding_beyond.answer(["say [PAD]"])
    with pytest.raises(UserError, match=r"spells '\[PAD\]'"):
        padding_beyond.loglikelihood(["a"], [["[PAD]"]])
    with pytest.raises(UserError, match=r"spells '\[PAD\]'"):
        list(Chat(padding_beyond).say("[PAD]"))
    row = Conversation((Turn("user", "a"), Turn("assistant", "[PAD]")), (), "rows.json", 3)
    with pytest.raises(RowError, match=r"rows.json, row 3: the text spells '\[PAD\]', token 259"):
        encode(row, padding_beyond.inputs(), 100)
