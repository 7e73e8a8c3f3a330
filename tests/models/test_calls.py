"""What callers give as prompts and photos: taken as it is meant, or refused by its name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmtune.common.errors import UserError
from mmtune.generation.chat import Chat
from mmtune.generation.generator import VisionLanguageModel
from mmtune.interfaces import Prompt, SamplingParams, Turn

ASK = "<image>what is this?"


@pytest.fixture(scope="module")
def shown(photos: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same photo in all the ways that are taken."""
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    photos[0].save(file)
    data = file.read_bytes()
    return {
        "Pillow": photos[0],
        "path": file,
        "string": str(file),
        "bytes": data,
        "bytearray": bytearray(data),
        "array": np.asarray(photos[0]),
    }


WAYS = ["Pillow", "path", "string", "bytes", "bytearray", "array"]


@pytest.mark.parametrize("way", WAYS)
def test_one_string_with_one_photo_has_one_answer(
    seeing_model: VisionLanguageModel, photos: list[Image.Image], shown: dict[str, Any], way: str
) -> None:
    model, photo = seeing_model, shown[way]
    (expected,) = model.answer([ASK], [[photos[0]]], max_tokens=6)
    assert expected != model.answer([ASK], [[photos[1]]], max_tokens=6)[0]  # it depends on what is seen
    assert model.answer(ASK, photo, max_tokens=6) == expected
    assert model.answer(ASK, [photo], max_tokens=6) == expected
    assert model.answer([ASK], [photo], max_tokens=6) == [expected]
    assert model.answer([ASK], [[photo]], max_tokens=6) == [expected]
    (likely,) = model.loglikelihood([ASK], [["a", "b"]], [[photos[0]]])
    assert model.loglikelihood(ASK, ["a", "b"], photo) == likely
    assert model.loglikelihood([ASK], [["a", "b"]], [(photo,)]) == [likely]
    assert Chat(model).say(ASK, photo) is not None
    pieces = [list(Chat(model).say("what is it?", given)) for given in (photo, [photo], [photos[0]])]
    assert pieces[0] == pieces[1] == pieces[2]


def test_one_string_alone(text_model: VisionLanguageModel) -> None:
    (expected,) = text_model.answer(["hi"], max_tokens=5)
    for given in ("hi", np.str_("hi")):
        assert text_model.answer(given, max_tokens=5) == expected
        assert text_model.answer(given, [], max_tokens=5) == expected
    for several in (("hi", "hi"), np.array(["hi", "hi"]), iter(["hi", "hi"])):
        assert text_model.answer(several, max_tokens=5) == [expected, expected]  # type: ignore[call-overload]
    assert text_model.answer("hi", max_tokens=5, temperature=1.0, top_k=1) == expected
    assert text_model.loglikelihood("hi", ["a"]) == text_model.loglikelihood(["hi"], [["a"]])[0]
    assert text_model.answer(["hi"], [None], max_tokens=5) == [expected]


def test_one_stop_string_is_not_its_characters(text_model: VisionLanguageModel) -> None:
    (whole,) = text_model.answer(["tell me"], max_tokens=20)
    stop = whole[4:6]
    cut = whole[: whole.index(stop) + 2]
    assert text_model.answer("tell me", max_tokens=20, stop=stop) == cut
    assert "".join(Chat(text_model).say("tell me", sampling=SamplingParams(max_tokens=20, stop=(stop,)))) == cut
    given: Any
    for given in (stop, 5, None, ("a", 5)):
        with pytest.raises(UserError, match="give strings in a tuple"):
            SamplingParams(stop=given)


def test_a_path_that_several_prompts_show_is_opened_and_seen_once(
    seeing_model: VisionLanguageModel, shown: dict[str, Any]
) -> None:
    before = seeing_model.usage["tower_passes"]
    seeing_model.answer([ASK, f"{ASK} again"], [shown["string"], [shown["string"]]], max_tokens=2)
    assert seeing_model.usage["tower_passes"] == before + 1


CHAT = {"role": "user", "content": "hi"}
BAD_PROMPTS = [
    (
        CHAT,
        "the prompt is a dict, with the keys role, content; give its text as a string; a conversation goes into",
    ),
    ([CHAT], "prompt 1 is a dict, with the keys role, content"),
    (["a", [CHAT]], "prompt 2 is a list; give a string; a conversation goes into"),
    (b"hi", "the prompt is a bytes; give a string"),
    (["a", b"hi"], "prompt 2 is a bytes; give a string"),
    (Path("a.txt"), r"the prompt is a pathlib.PosixPath; give a string"),
    (None, "the prompt is a NoneType; give a string"),
    ([None], "prompt 1 is a NoneType"),
    (7, "the prompt is a int; give a string"),
    ([["a"]], "prompt 1 is a list"),
]


@pytest.mark.parametrize(("given", "message"), BAD_PROMPTS)
def test_other_prompts_are_refused_by_name(text_model: VisionLanguageModel, given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        text_model.answer(given)
    with pytest.raises(UserError, match=message):
        text_model.loglikelihood(given, [["a"]])
    if not isinstance(given, list) or given == [CHAT]:
        with pytest.raises(UserError, match="what is said is a "):
            list(Chat(text_model).say(given))


BAD_PHOTOS = [
    ({"path": "a.png", "bytes": b""}, "the photo of the prompt is a dict, with the keys path, bytes; give the photo"),
    ("http://a/b.png", "the photo of the prompt is the address http://a/b.png; nothing is fetched"),
    ("data:image/png;base64,AAAA", "is the address data:image"),
    ("missing.png", "the prompt: the photo missing.png does not exist"),
    (b"GIF", "the prompt: the photo of 3 bytes is not a picture of a known format"),
    (io.BytesIO(), "the photo of the prompt is a _io.BytesIO; give a Pillow image, a path"),
    (7, "the photo of the prompt is a int; give a Pillow image"),
    (np.zeros((4, 4, 3)), r"is an array of float64 \[4, 4, 3\]; give uint8"),
    (np.zeros((3, 5, 7), np.uint8), r"is an array of uint8 \[3, 5, 7\]; give uint8"),
    (np.zeros((2, 4, 4, 3), np.uint8), r"is an array of uint8 \[2, 4, 4, 3\]"),
    (torch.zeros(1, 3, 4, 4), "photo 1 of the prompt is a torch.Tensor; give"),
    ([[Image.new("RGB", (4, 4))]], "photo 1 of the prompt is a list; give"),
    ([None], "photo 1 of the prompt is a NoneType"),
]


@pytest.mark.parametrize(("given", "message"), BAD_PHOTOS)
def test_other_photos_are_refused_by_name(seeing_model: VisionLanguageModel, given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        seeing_model.answer(ASK, given)
    with pytest.raises(UserError, match=message):
        seeing_model.loglikelihood(ASK, ["a"], given)
    with pytest.raises(UserError, match=message):
        list(Chat(seeing_model).say(ASK, given))
    with pytest.raises(UserError, match=message.replace("the prompt", "prompt 1")):
        seeing_model.answer([ASK], [given])


def test_lists_of_another_shape_are_refused(seeing_model: VisionLanguageModel, photos: list[Image.Image]) -> None:
    model: Any = seeing_model
    with pytest.raises(UserError, match=r"images: is a PIL.Image for a list of prompts; give a list of photos per"):
        model.answer([ASK, ASK], photos[0])
    with pytest.raises(UserError, match="2 prompts but photos for 1"):
        model.answer([ASK, ASK], [photos[0]])
    with pytest.raises(UserError, match="choices of prompt 1: is a str; give a list of strings"):
        model.loglikelihood(["a"], ["yes"])
    with pytest.raises(UserError, match="choices: is a str; give a list of strings"):
        model.loglikelihood("a", "yes")
    with pytest.raises(UserError, match="choice 1 is a list"):
        model.loglikelihood("a", [["yes"]])
    with pytest.raises(UserError, match="2 prompts but choices for 1"):
        model.loglikelihood(["a", "b"], [["yes"]])
    for name, value in (("system", 3), ("response_prefix", ["a"]), ("stop", {"a": 1}), ("max_tokens", "9")):
        with pytest.raises(UserError, match=name):
            model.answer("a", **{name: value})
    with pytest.raises(UserError, match="max_tokens 0: give a whole number of at least 1"):
        model.answer("a", max_tokens=0)
    with pytest.raises(UserError, match="temprature: answer has no such option; did you mean 'temperature'"):
        model.answer("a", temprature=1)
    with pytest.raises(UserError, match="n 2: answer gives one to each prompt"):
        model.answer("a", n=2)
    for wrong in ("a", ["a"], [[CHAT]], Prompt.of("a")):
        with pytest.raises(UserError, match=r"generate takes a list of mmtune\.Prompt; answer takes strings"):
            model.generate(wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="prompt 1 has the turns user, user; give an optional system turn"):
        model.generate([Prompt((Turn("user", "a"), Turn("user", "b")))])
    with pytest.raises(UserError, match="the user's text of prompt 1 is a int"):
        model.generate([Prompt((Turn("user", 3),))])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the system prompt is a list"):
        Chat(model, system=[CHAT])  # type: ignore[arg-type]
