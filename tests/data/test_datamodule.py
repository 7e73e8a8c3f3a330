"""From files to loaders, on real rows and photos."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from data_builders import encoded_photo, fake_preprocess

from mmtune.common.errors import UserError
from mmtune.data.datamodule import InstructionData
from mmtune.data.encoding import IGNORED, IMAGE_TOKEN, ModelInputs
from mmtune.data.mixture import Mixture
from mmtune.data.rendering.templates import TEMPLATES


@pytest.fixture(scope="module")
def real_inputs(llama_tokenizer: Any) -> ModelInputs:
    return ModelInputs(llama_tokenizer, TEMPLATES["vicuna_v1"], tokens_per_image=9, preprocess=fake_preprocess)


@pytest.fixture(scope="module")
def real(real_inputs: ModelInputs, shared_data: Path) -> InstructionData:
    mixture = Mixture(
        [str(shared_data / "text/p3_t0.jsonl")],
        [str(shared_data / "visual/coco_captions_llava.json")],
        text_fraction=0.5,
        total=600,
    )
    data = InstructionData(mixture, validation_fraction=0.2, max_length=1024, on_bad_row="skip", inputs=real_inputs)
    data.setup()
    return data


def test_real_rows_from_end_to_end(real: InstructionData, real_inputs: ModelInputs) -> None:
    batches = list(real.train_dataloader())
    rows = [where for batch in batches for where in batch.where]
    assert len(rows) == len(set(rows)) == real.record["rows"]["train"]
    tokenizer = real_inputs.tokenizer
    for batch in batches:
        assert len(batch.input_ids) <= 1024
        photos = 0 if batch.pixels is None else len(batch.pixels)
        assert batch.image_tokens == 9 * photos == 9 * len(batch.image_keys)
        assert all((batch.targets[batch.document_ids == d] != IGNORED).any() for d in range(len(batch.where)))
        assert not (batch.targets == IMAGE_TOKEN).any()
    ids = batches[0].input_ids[batches[0].document_ids == 0]
    text = tokenizer.decode(ids[ids != IMAGE_TOKEN])
    assert " USER:" in text
    assert "<|endoftext|>" not in text
    assert sum(batch.supervised_tokens for batch in batches) == real.record["tokens"]["supervised"]


def test_rows_about_one_photo_stay_together(real: InstructionData) -> None:
    assert real._train is not None
    assert real._validation is not None
    train = {photo for example in real._train.examples for photo in example.images}
    validation = {photo for example in real._validation.examples for photo in example.images}
    assert train
    assert validation
    assert not train & validation
    assert 0.1 < len(real._validation.examples) / 600 < 0.3


def test_the_record_says_what_was_trained_on(real: InstructionData, shared_data: Path) -> None:
    record = json.loads(json.dumps(real.record))
    text, visual = (str(shared_data / p) for p in ("text/p3_t0.jsonl", "visual/coco_captions_llava.json"))
    assert record["sources"][text]["visual"] == record["sources"][visual]["text"] == 0
    drawn = sum(sum(kinds.values()) for kinds in record["sources"].values())
    assert drawn == record["rows"]["train"]
    assert all(len(digest) == 64 for digest in record["fingerprints"].values())
    assert set(record["fingerprints"]) == {text, visual}
    assert 0.8 < record["packs"]["filled"] <= 1
    assert record["packs"]["budget"] == 1024
    assert record["bad_rows"]["count"] == len(record["bad_rows"]["messages"]) > 300
    assert any("row 14: the assistant's answer in turn 2 is empty" in m for m in record["bad_rows"]["messages"])


def test_the_same_seed_gives_the_same_batches(real: InstructionData, real_inputs: ModelInputs) -> None:
    again = InstructionData(
        real.mixture, validation_fraction=0.2, max_length=1024, on_bad_row="skip", inputs=real_inputs
    )
    again.setup()
    for one, other in zip(real.train_dataloader(), again.train_dataloader(), strict=True):
        assert one.where == other.where
        assert torch.equal(one.input_ids, other.input_ids)


# Small made-up rows


@pytest.fixture
def captions(tmp_path: Path) -> Callable[[list[list[str]]], str]:
    """Write LLaVA rows about the named photos; a name with "bad" in it does not decode."""

    def write(photos: list[list[str]]) -> str:
        rows = []
        for names in photos:
            for name in names:
                (tmp_path / name).write_bytes(b"no" if "bad" in name else encoded_photo(len(rows)))
            said = [
                {"from": "human", "value": "<image>" * len(names) + "What?"},
                {"from": "gpt", "value": "That."},
            ]
            rows.append({"image": names, "conversations": said})
        path = tmp_path / "captions.json"
        path.write_text(json.dumps(rows))
        return str(path)

    return write


def test_rows_that_share_one_of_several_photos_stay_together(captions: Any, photo_inputs: ModelInputs) -> None:
    chain = [[f"{i}.png", f"{i + 1}.png"] for i in range(6)]  # each row shares a photo with the next
    apart = [[f"x{i}.png"] for i in range(6)]
    source = captions(chain + apart)
    for seed in range(8):
        data = InstructionData(Mixture([], [source], seed=seed), validation_fraction=0.3, inputs=photo_inputs)
        data.setup()
        assert data._train is not None
        assert data._validation is not None
        held = {e.where for e in data._validation.examples}
        assert {f"{source}, row {n}" in held for n in range(1, 7)} in ({True}, {False})
        assert len(data._train.examples) + len(held) == 12


def test_every_row_of_a_damaged_photo_is_reported(captions: Any, photo_inputs: ModelInputs) -> None:
    source = captions([["good.png"], ["bad.png"], ["good.png", "bad.png"], ["bad2.png", "bad.png"]])
    data = InstructionData(Mixture([], [source]), on_bad_row="skip", inputs=photo_inputs)
    data.setup()
    assert data.record["rows"] == {"train": 1, "validation": 0}
    assert data.record["sources"] == {source: {"text": 0, "visual": 1}}
    reported = sorted(data.record["bad_rows"]["messages"])
    assert [m.split(": the photo")[0] for m in reported] == [f"{source}, row {n}" for n in (2, 3, 4)]
    stopping = InstructionData(Mixture([], [source]), inputs=photo_inputs)
    with pytest.raises(UserError, match=r"bad2?\.png is not a picture of a known format"):
        stopping.setup()


def test_rows_too_long_are_counted_and_not_cut(write_lines: Any, text_inputs: ModelInputs) -> None:
    rows = [{"prompt": "a" * n, "completion": "b"} for n in (10, 500, 20)]
    data = InstructionData(Mixture([write_lines(rows)]), max_length=100, on_bad_row="skip", inputs=text_inputs)
    data.setup()
    assert data.record["rows"]["train"] == 2
    [message] = data.record["bad_rows"]["messages"]
    assert "row 2" in message
    assert "--data.max_length 100" in message


def test_rows_too_long_are_cut_where_that_is_wanted(write_lines: Any, text_inputs: ModelInputs) -> None:
    rows = [("a", "b" * 9), ("a", "b" * 500), ("a" * 500, "b")]
    source = write_lines([{"prompt": ask, "completion": say} for ask, say in rows])
    options: dict[str, Any] = {"max_length": 100, "truncate": True, "inputs": text_inputs}
    with pytest.raises(UserError, match=r"row 3: cut at --data\.max_length 100, it would have no answer left"):
        InstructionData(Mixture([source]), **options).setup()
    data = InstructionData(Mixture([source]), on_bad_row="skip", **options)
    data.setup()
    assert data.record["rows"]["train"] == 2
    assert data.record["tokens"]["longest_row"] == 100
    assert data.record["bad_rows"]["count"] == 1
    [cut] = data.record["cut_rows"]["rows"]
    assert cut.startswith(f"{source}, row 2: 4")
    assert data.record["cut_rows"]["count"] == 1


def test_validation_files_and_loaders(write_lines: Any, text_inputs: ModelInputs) -> None:
    rows = [{"prompt": f"q{i}", "completion": "a"} for i in range(9)]
    train, held = write_lines(rows, "train.jsonl"), write_lines(rows[:4], "held.jsonl")
    data = InstructionData(Mixture([train]), [held], max_length=64, inputs=text_inputs)
    data.setup()
    loader = data.val_dataloader()
    wanted = sorted(f"{held}, row {n}" for n in range(1, 5))
    for _ in range(2):
        assert sorted(where for batch in loader for where in batch.where) == wanted
    without = InstructionData(Mixture([train]), max_length=64, inputs=text_inputs)
    without.setup()
    assert without.val_dataloader() == []
    assert without.images() == {}


def test_batches_hold_features_where_they_are_known(captions: Any, photo_inputs: ModelInputs) -> None:
    file = captions([["a.png"], ["a.png"], ["b.png"]])
    data = InstructionData(Mixture([], [file]), [file], inputs=photo_inputs)
    data.setup()
    photos = data.images()
    assert {Path(str(photo)).name: where for photo, where in photos.items()}.keys() == {"a.png", "b.png"}
    assert all(str(file) in where for where in photos.values())
    features = {photo: torch.full((4, 6), float(number)) for number, photo in enumerate(photos)}
    data.use_features(features.__getitem__)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        (batch,) = loader
        assert batch.pixels is None
        assert batch.features.shape == (3, 4, 6)
        seen = batch.features[:, 0, 0].tolist()
        shown = dict(zip(batch.where, seen, strict=True))
        assert shown[f"{file}, row 1"] == shown[f"{file}, row 2"] != shown[f"{file}, row 3"]
        turned = batch.with_images([1, 2, 0])
        assert torch.equal(turned.features, batch.features[[1, 2, 0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 1.0}, "--data.validation_fraction 1.0"),
        ({"validation_fraction": 0.1, "validation": ["x"]}, "exclude each other"),
        ({"pack_tokens": 10, "max_length": 20}, "--data.pack_tokens 10 is below --data.max_length 20"),
        ({"pack_rows": 0}, "--data.pack_rows 0"),
        ({"pack_tokens": 0}, "--data.pack_tokens 0 is below --data.max_length 2048"),
        ({"max_length": 0}, "--data.max_length 0: must be at least 1"),
        ({"num_workers": -1}, "--data.num_workers -1"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        InstructionData(Mixture(["x"]), **options)


@pytest.mark.parametrize(("fraction", "kind"), [(0.9, "training"), (0.1, "validation")])
def test_a_fraction_that_leaves_one_side_empty(
    fraction: float, kind: str, write_lines: Any, text_inputs: ModelInputs
) -> None:
    source = write_lines([{"prompt": "a", "completion": "b"}])
    data = InstructionData(Mixture([source]), validation_fraction=fraction, inputs=text_inputs)
    with pytest.raises(UserError, match=f"no row is left for {kind}; see --data.validation_fraction"):
        data.setup()


def test_nothing_left_names_the_first_reason(write_lines: Any, text_inputs: ModelInputs) -> None:
    source = write_lines([{"prompt": "a" * 100, "completion": "b"}])
    data = InstructionData(Mixture([source]), max_length=20, on_bad_row="skip", inputs=text_inputs)
    with pytest.raises(UserError, match=r"no row is left for training; the first one left out: .*row 1: 1.. tokens"):
        data.setup()


def test_rows_too_long_do_not_change_total_or_fraction(
    captions: Any, write_lines: Any, photo_inputs: ModelInputs
) -> None:
    rows = [{"prompt": "a" * (500 if i % 2 else 5), "completion": "b"} for i in range(20)]
    visual = captions([[f"{'bad' if i % 3 == 0 else 'good'}{i}.png"] for i in range(15)])
    mixture = Mixture([write_lines(rows)], [visual], text_fraction=0.5, total=12)
    data = InstructionData(mixture, max_length=100, on_bad_row="skip", inputs=photo_inputs)
    data.setup()
    kinds = data.record["sources"].values()
    assert (sum(k["text"] for k in kinds), sum(k["visual"] for k in kinds)) == (6, 6)
    assert data.record["rows"]["train"] == 12


def test_special_tokens_spelled_in_the_text_are_reported(write_lines: Any, text_inputs: ModelInputs) -> None:
    rows = [
        {"prompt": "plain", "completion": "a"},
        {"prompt": "x<|im_end|>\n<|im_start|>assistant\ny", "completion": "a"},
    ]
    source = write_lines(rows)
    data = InstructionData(Mixture([source]), inputs=text_inputs)
    data.setup()
    assert data.record["rows_spelling_markers"] == {
        "count": 1,
        "rows": [f"{source}, row 2: <|im_end|>, <|im_start|>"],
    }


def test_a_checkpoint_of_other_data_is_refused(write_lines: Any, text_inputs: ModelInputs) -> None:
    def state(answer: str, **options: Any) -> dict[str, Any]:
        rows = [{"prompt": f"q{i}", "completion": answer} for i in range(5)]
        data = InstructionData(Mixture([write_lines(rows)], **options), inputs=text_inputs)
        data.setup()
        data.load_state_dict(data.state_dict())
        with pytest.raises(UserError, match="trained on other rows"):
            data.load_state_dict({"packs": "other"})
        return data.state_dict()

    assert state("a") == state("a")
    assert (
        len({state("a")["packs"], state("b")["packs"], state("a", seed=1)["packs"], state("a", total=4)["packs"]}) == 4
    )


def test_a_checkpoint_of_other_photos_is_refused_and_of_moved_ones_is_not(
    captions: Any, photo_inputs: ModelInputs, tmp_path: Path
) -> None:
    source = captions([["good1.png"], ["good2.png"]])
    photo = tmp_path / "good1.png"
    data = photo.read_bytes()
    photo.write_bytes(data + b"a")  # which changes no pixel

    def packs(root: Path) -> str:
        data = InstructionData(Mixture(visual=[source], image_root=str(root)), inputs=photo_inputs)
        data.setup()
        return str(data.state_dict()["packs"])

    first = packs(Path(source).parent)
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(Path(source).parent, moved)
    shutil.copytree(Path(source).parent, other)
    (other / "good1.png").write_bytes(data + b"b")  # of the same size
    assert packs(moved) == first != packs(other)


def test_a_checkpoint_is_no_matter_where_nothing_is_trained(write_lines: Any, text_inputs: ModelInputs) -> None:
    rows = write_lines([{"prompt": "q", "completion": "a"}])
    data = InstructionData(Mixture([rows]), validation=[rows], inputs=text_inputs)
    data.setup("validate")
    data.load_state_dict({"packs": "of the run that is measured"})
