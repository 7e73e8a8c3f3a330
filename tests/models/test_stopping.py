"""Answers end where the chat template ends a turn: greedy, sampled, in a chat, and from an exported folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_templates import EOS, FAMILIES, NO_END, Family, carrying
from tiny_models import save_llama

from mmtune.data.conversation import Conversation
from mmtune.data.encoding import IGNORED, encode
from mmtune.generation.chat import Chat
from mmtune.generation.generator import VisionLanguageModel
from mmtune.interfaces import Turn
from mmtune.models.export import export

SAID = {"What colour?": "green", "And now?": "green"}
ASKED = list(SAID)
CHOSEN = ("chatml, other eos", "phi-3", "llama-3", "gpt-oss", "glm", "a marker that is text", "words that are text")


def saved(folder: Path, tokenizer: Any, also: list[int] | None = None) -> Path:
    """A language model of random weights whose generation config names the tokenizer's end, and others."""
    save_llama(folder, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    tokenizer.save_pretrained(folder)
    if also:
        file = folder / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [tokenizer.eos_token_id, *also]}))
    return folder


def taught(model: VisionLanguageModel) -> VisionLanguageModel:
    """The model after some steps on what mmtune learns of two rows and of a conversation of both."""
    turns = [Turn(role, text) for pair in SAID.items() for role, text in zip(("user", "assistant"), pair, strict=True)]
    rows = [turns[:2], turns[2:], turns]
    examples = [encode(Conversation(tuple(row), (), "rows", 1), model.inputs(), 4096) for row in rows]
    model.set_stage("tune")
    optimizer = torch.optim.Adam(model.language.parameters(), lr=3e-3)
    with torch.enable_grad():
        for _ in range(200):
            losses = []
            for example in examples:
                ids = torch.from_numpy(example.input_ids.astype("int64"))
                labels = ids.where(torch.from_numpy(example.supervised), IGNORED)
                logits = model.base_language(ids[None]).logits[0, :-1]
                losses.append(torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=IGNORED))
            loss = torch.stack(losses).mean()
            if loss < 0.02:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert loss < 0.05
    return model.eval()


def load(folder: Path) -> VisionLanguageModel:
    model = VisionLanguageModel.from_pretrained(folder, template="tokenizer")
    model.base_language.config._attn_implementation = "sdpa"
    return model


@pytest.fixture(scope="module", params=CHOSEN)
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Any]:
    family = FAMILIES[request.param]
    tokenizer = carrying(family.jinja, family.tokens, family.eos)
    return family, taught(load(saved(tmp_path_factory.mktemp("base"), tokenizer)))


def test_answers_end_at_the_turn(tuned: tuple[Family, VisionLanguageModel]) -> None:
    _, model = tuned
    head = "final" if "<|channel|>" in model.tokenizer.get_vocab() else ""
    expected = [head + text for text in SAID.values()]
    assert model.answer(ASKED, max_tokens=40) == expected
    assert model.answer(ASKED, max_tokens=40, temperature=0.01) == expected
    chat = Chat(model)
    assert ["".join(chat.say(text)) for text in ASKED] == expected


def test_an_export_ends_them_at_the_same_place(tuned: tuple[Family, VisionLanguageModel], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    family, model = tuned
    config = model.base_language.config.eos_token_id
    export(model, "merged", tmp_path / "out")
    folder = tmp_path / "out" / "language"
    written = json.loads((folder / "generation_config.json").read_text())
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == config
    assert written["eos_token_id"] == model.end_ids()
    language, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ends = model.end_texts()
    assert written.get("stop_strings") == (list(ends) or None)
    for asked, said in zip(ASKED, model.answer(ASKED, max_tokens=40), strict=True):
        prompt = torch.tensor([encode_prompt(model, asked)])
        options = {"tokenizer": tokenizer} if ends else {}
        new = language.generate(prompt, max_new_tokens=40, **options)[0, prompt.shape[1] :]
        text = tokenizer.decode(new, skip_special_tokens=True)
        for end in ends:
            text = text.removesuffix(end)
        assert text == said
    again = VisionLanguageModel.from_pretrained(tmp_path / "out")
    assert again.end_ids() == model.end_ids()
    assert again.answer(ASKED, max_tokens=40) == model.answer(ASKED, max_tokens=40)
    assert family.ends == again.template.stops


def encode_prompt(model: VisionLanguageModel, asked: str) -> list[int]:
    return list(model.tokenizer(model.template.prompt([Turn("user", asked)]), add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("template", ["tokenizer", "chatml"])
def test_the_ends_of_the_generation_config_are_kept(template: str, tmp_path: Path) -> None:
    family = FAMILIES["glm"]
    tokenizer = carrying(family.jinja, family.tokens)
    observed = tokenizer.convert_tokens_to_ids("<|observation|>")
    folder = saved(tmp_path / "base", tokenizer, [observed])
    model = VisionLanguageModel.from_pretrained(folder, template=template)
    markers = {"tokenizer": ["<|user|>"], "chatml": []}[template]
    expected = sorted({tokenizer.eos_token_id, observed, *tokenizer.convert_tokens_to_ids(markers)})
    assert model.end_ids() == expected
    model.set_stage("tune")
    model.save_pretrained(tmp_path / "saved")
    export(model, "merged", tmp_path / "merged")
    for place in ("saved", "merged"):
        assert VisionLanguageModel.from_pretrained(tmp_path / place).end_ids() == expected
        written = json.loads((tmp_path / place / "language" / "generation_config.json").read_text())
        assert written["eos_token_id"] == expected


def test_a_template_without_an_end_is_cut_at_the_next_turn(tmp_path: Path) -> None:
    tokenizer = carrying(NO_END)
    model = VisionLanguageModel.from_pretrained(saved(tmp_path / "base", tokenizer), template="tokenizer")
    assert model.end_ids() == [tokenizer.convert_tokens_to_ids(EOS)]
    assert model.end_texts() == ("\nUser:",)
