"""A conversation: the answers are those of a prompt written anew, and only what is new is computed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmtune.common.errors import UserError
from mmtune.generation.chat import Chat
from mmtune.generation.generator import VisionLanguageModel
from mmtune.generation.prompts import PromptEncoder
from mmtune.generation.request import engine_of, passes_of, stop_conditions
from mmtune.interfaces import Prompt, SamplingParams, Turn
from mmtune.models.decoding.draft import Draft
from mmtune.models.decoding.sampler import Sampler, random_numbers
from mmtune.models.decoding.session import Session
from mmtune.models.decoding.stopping import StopConditions, StreamDecoder
from mmtune.models.spec import ModelSpec

SHORT = SamplingParams(max_tokens=12)


def heard(chat: Chat, text: str, *images: Image.Image, sampling: SamplingParams = SHORT) -> str:
    return "".join(chat.say(text, images, sampling=sampling))


def anew(model: VisionLanguageModel, turns: list[Turn], photos: list[Image.Image], limit: int = 12) -> str:
    """The answer of the evaluation's engine to the whole conversation, rendered at once."""
    encoder = PromptEncoder(model)
    ids = encoder.token_ids(model.template.prompt(turns), photos)
    draft = Draft(ids, stop_conditions(model, limit, ()), model.tokenizer, random_numbers(0, "", 0))
    with torch.inference_mode():
        engine_of(model, encoder).complete([draft], Sampler(SamplingParams()))
    return draft.text


@pytest.fixture(scope="module")
def vicuna(sentencepiece_llama: Path, tower_weights: Path) -> VisionLanguageModel:
    from mmtune.models.spec import VisionOptions

    tower = VisionOptions("timm:test_vit", str(tower_weights), grid=2)
    return VisionLanguageModel.assemble(ModelSpec(str(sentencepiece_llama), tower, template="vicuna_v1")).eval()


@pytest.mark.parametrize("family", ["seeing_model", "vicuna"])
def test_every_answer_is_that_of_the_whole_conversation_anew(
    family: str, request: pytest.FixtureRequest, photos: list[Image.Image]
) -> None:
    model: VisionLanguageModel = request.getfixturevalue(family)
    chat = Chat(model, system="Be brief.")
    said = [("Hello, who are you?", []), ("And this?", photos[:1]), ("Sure?", []), ("These?", photos[1:3])]
    turns, shown = [Turn("system", "Be brief.")], []
    for number, (text, images) in enumerate(said):
        answer = heard(chat, text, *images)
        turns.append(Turn("user", "<image>\n" * len(images) + text))
        shown += images
        assert answer == anew(model, turns, shown)
        if number == 0:
            assert [answer] == model.answer([text], system="Be brief.", max_tokens=12)
        turns.append(Turn("assistant", answer.replace("<image>", "image")))
    assert chat.turns == turns[1:]
    assert chat.images == photos[:3]


def test_a_first_answer_about_a_photo_is_that_of_generate(
    seeing_model: VisionLanguageModel, photos: list[Image.Image]
) -> None:
    for photo in photos:
        given = seeing_model.answer(["What is it? <image>"], [[photo]], max_tokens=12)
        assert [heard(Chat(seeing_model), "What is it? <image>", photo)] == given


def test_adapters_speak_too(build: Callable[..., VisionLanguageModel]) -> None:
    from mmtune.models.spec import LoraOptions

    model = build(lora=LoraOptions(r=2))
    assert [heard(Chat(model), "Hello")] == model.answer(["Hello"], max_tokens=12)


def test_a_turn_costs_its_own_tokens_and_a_photo_one_pass(
    seeing_model: VisionLanguageModel, photos: list[Image.Image]
) -> None:
    assert seeing_model.tower is not None
    before = seeing_model.tower.images_encoded
    chat = Chat(seeing_model)
    answer = heard(chat, "Look.", photos[0])
    first = chat.counts.computed
    heard(chat, "Why?")
    whole = PromptEncoder(seeing_model).token_ids(
        seeing_model.template.prompt([*chat.turns[:2], Turn("user", "Why?")]), photos[:1]
    )
    assert chat.counts.reused + chat.counts.computed == first + len(whole)
    # random bytes are mostly no text, and are cut otherwise when written down; that text begins where they did
    assert chat.counts.reused >= first
    assert chat.counts.computed - first <= len(whole) - first
    heard(chat, "And?")
    assert seeing_model.tower.images_encoded == before + 1
    assert chat.counts.generated >= 3
    assert answer == chat.turns[1].text


def test_what_the_model_said_is_not_computed_again(text_model: VisionLanguageModel) -> None:
    """Where the answer's tokens come out of its text again, all of the turn before is kept."""
    chat = Chat(text_model)
    heard(chat, "Hi")
    answer = "yes it is"
    chat.turns[-1] = Turn("assistant", answer)
    prompt = chat._encoder.token_ids(text_model.template.prompt([Turn("user", "Hi")]))
    said = np.array(text_model.tokenizer(answer, add_special_tokens=False)["input_ids"])
    chat._engine = Session(passes_of(text_model, chat._encoder))
    conditions = stop_conditions(text_model, 1, ())
    whole = Draft(np.concatenate([prompt, said]), conditions, text_model.tokenizer, random_numbers(0, "", 0))
    list(chat._engine.stream(whole, Sampler(SamplingParams())))
    computed = chat.counts.computed
    heard(chat, "So?")
    assert chat.counts.computed - computed == len(
        text_model.tokenizer("<|im_end|>\n<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    )


def test_an_earlier_turn_that_is_written_otherwise_is_computed_anew(text_model: VisionLanguageModel) -> None:
    chat = Chat(text_model)
    heard(chat, "One")
    chat.turns = [Turn("user", "Two"), Turn("assistant", "another answer")]
    assert heard(chat, "Three") == anew(text_model, [*chat.turns[:2], Turn("user", "Three")], [])


def test_a_turn_that_is_interrupted_counts_as_far_as_it_was_heard(
    text_model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Chat(text_model)
    heard(chat, "Hi")
    pieces = chat.say("Tell me more", sampling=SamplingParams(max_tokens=40))
    part = next(pieces)
    pieces.close()
    assert [turn.text for turn in chat.turns[2:]] == ["Tell me more", part]

    layers = itertools.count()
    attention = text_model.base_language.model.layers[1].forward

    def interrupted(*args: object, **kwargs: object) -> object:
        if next(layers) == 0:
            raise KeyboardInterrupt
        return attention(*args, **kwargs)

    monkeypatch.setattr(text_model.base_language.model.layers[1], "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        heard(chat, "Not said")
    assert len(chat.turns) == 4
    assert heard(chat, "Go on") == anew(text_model, [*chat.turns[:4], Turn("user", "Go on")], [])


def test_nothing_is_left_after_a_reset(seeing_model: VisionLanguageModel, photos: list[Image.Image]) -> None:
    chat = Chat(seeing_model)
    first = heard(chat, "What?", photos[0])
    heard(chat, "And?")
    chat.reset()
    assert (chat.turns, chat.images, chat.counts.computed) == ([], [], 0)
    assert heard(chat, "What?", photos[0]) == first


def test_drawn_answers_are_those_of_generate_for_the_same_seed(text_model: VisionLanguageModel) -> None:
    said = set()
    for seed, top_p in ((0, 1.0), (1, 0.7), (2, 0.2)):
        sampling = SamplingParams(temperature=1.3, top_p=top_p, max_tokens=20, seed=seed)
        ((drawn,),) = text_model.generate([Prompt.of("Hello", name="turn 0")], sampling)
        assert heard(Chat(text_model), "Hello", sampling=sampling) == drawn.text
        said.add(drawn.text)
    assert len(said) == 3
    whole = [heard(Chat(text_model), "Hello", sampling=SamplingParams(temperature=t, seed=1)) for t in (2, 2.0)]
    assert whole[0] == whole[1]


@pytest.mark.parametrize("family", ["llama", "sentencepiece_llama"])
def test_no_piece_holds_part_of_a_character_or_loses_a_space(family: str, request: pytest.FixtureRequest) -> None:
    from mmtune.models.language import load_tokenizer

    tokenizer = load_tokenizer(str(request.getfixturevalue(family)))
    ending = StopConditions(1000, (), [], ("</s>",))
    text = "Grüße  an 東京 🙂‍↔️ – a < b </ s>, x"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    answer, settled = StreamDecoder(ending, tokenizer), []
    for token in ids:
        answer.append(token)
        settled.append(ending.settled(answer.text))
    for shorter, longer in itertools.pairwise([*settled, text]):
        assert longer.startswith(shorter)
        assert "\ufffd" not in shorter
    assert len(set(settled)) > len(text) // 3


def test_a_begun_end_marker_is_held_back() -> None:
    ending = StopConditions(10, (), [], ("</s>",))
    assert [ending.settled(text) for text in ("a <", "a </s", "a <b", "<", "")] == ["a ", "a ", "a <b", "", ""]


def test_the_stop_string_ends_the_answer(text_model: VisionLanguageModel) -> None:
    whole = heard(Chat(text_model), "Hello")
    stop = whole[2:4]
    chat = Chat(text_model)
    stopping = SamplingParams(max_tokens=12, stop=(stop,))
    assert "".join(chat.say("Hello", sampling=stopping)) == text_model.answer("Hello", max_tokens=12, stop=stop)


def test_a_mark_that_the_model_writes_is_no_photo(
    text_model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Chat(text_model)
    monkeypatch.setattr(text_model.tokenizer, "decode", lambda ids, **_: "an <image> here" if ids else "")
    assert heard(chat, "Hi", sampling=SamplingParams(max_tokens=1)) == "an <image> here"
    monkeypatch.undo()
    assert chat.turns[1].text == "an image here"
    heard(chat, "More")


def test_mistakes_are_named_and_nothing_was_said(
    text_model: VisionLanguageModel, seeing_model: VisionLanguageModel, photos: list[Image.Image]
) -> None:
    chat = Chat(text_model)
    for text, images, message in (
        ("  ", [], "nothing was said"),
        ("What is <image>?", [], r"1 <image> mark\(s\) but 0 photo"),
        ("What?", photos[:1], "no vision tower"),
        ("x \ud83d", [], "surrogate"),
        ("word " * 2000, [], r"what is said is [\d,]+ tokens long, and .* reads 4,096; say less"),
    ):
        with pytest.raises(UserError, match=message):
            heard(chat, text, *images)
    assert chat.turns == []
    with pytest.raises(UserError, match="system prompt holds <image>"):
        Chat(seeing_model, system="<image>")
    for wrong in ({"temperature": -1}, {"top_p": 0.0}, {"max_tokens": 0}, {"seed": -1}, {"temperature": np.nan}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            SamplingParams(**wrong)


@pytest.mark.parametrize("name", ["temperature", "top_p"])
@pytest.mark.parametrize("value", [1e-300, 5e-324, 1e-9, -1e-300, -1, 11, "1", True, [1], float("inf"), float("nan")])
def test_numbers_to_draw_with_are_numbers(name: str, value: Any, text_model: VisionLanguageModel) -> None:
    with pytest.raises(UserError, match=f"^{name} "):
        SamplingParams(**{name: value})
    with pytest.raises(UserError, match=f"^{name} "):
        text_model.answer(["a"], max_tokens=1, **{name: value})


@pytest.mark.parametrize("options", [{"temperature": 0.001}, {"temperature": 10, "top_p": 0.001}, {"top_p": 1}])
def test_the_numbers_at_the_edge_draw(options: dict[str, Any], text_model: VisionLanguageModel) -> None:
    assert heard(
        Chat(text_model), "a", sampling=SamplingParams(**({"temperature": 1.0} | options), max_tokens=3, seed=1)
    )


def test_an_answer_ends_where_the_model_can_read_no_further(text_model: VisionLanguageModel) -> None:
    chat = Chat(text_model)
    sampling = SamplingParams(max_tokens=500)
    limit = text_model.base_language.config.max_position_embeddings
    text = "w" * (limit - 70)
    heard(chat, text, sampling=sampling)
    prompt = chat.counts.computed
    assert prompt + chat.counts.generated <= limit


@pytest.fixture
def narrow(build: Callable[..., VisionLanguageModel]) -> VisionLanguageModel:
    """A model that sees and reads 160 tokens, each a byte; no marker ends its answers."""
    model = build(vision=True)
    model.base_language.config.max_position_embeddings = 160
    with torch.no_grad():
        model.base_language.get_output_embeddings().weight[256:] = 0
    return model


def test_a_conversation_longer_than_the_window_is_refused(narrow: VisionLanguageModel) -> None:
    chat, sampling = Chat(narrow), SamplingParams(max_tokens=20)
    heard(chat, "a" * 50, sampling=sampling)
    assert chat.finish_reason == "length"
    before = list(chat.turns)
    with pytest.raises(UserError, match=r"the conversation is \d+ tokens long, and .* reads 160; start a new one, or"):
        heard(chat, "b" * 60, sampling=sampling)
    assert (chat.turns, chat.forgotten) == (before, 0)
    heard(chat, "b" * 30, sampling=sampling)
    assert chat.finish_reason == "window"


def test_the_oldest_turns_are_forgotten_with_their_photos(
    narrow: VisionLanguageModel, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, sampling = Chat(narrow), SamplingParams(max_tokens=20)
    monkeypatch.setattr(narrow, "past_window", "shorten")
    heard(chat, "a" * 20, photos[0], sampling=sampling)
    heard(chat, "b" * 20, photos[1], sampling=sampling)
    assert chat.forgotten == 0
    said = heard(chat, "c" * 20, photos[2], sampling=sampling)
    assert (chat.forgotten, len(chat.turns), len(chat.images)) == (2, 6, 3)
    fresh = Chat(narrow)
    fresh.turns, fresh.images = chat.turns[2:4], list(photos[1:2])
    assert said == heard(fresh, "c" * 20, photos[2], sampling=sampling)
    with pytest.raises(UserError, match="say less"):
        heard(chat, "d" * 200, sampling=sampling)
    assert chat.forgotten == 2
