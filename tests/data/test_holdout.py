"""What is measured on is not trained on, under whatever name."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from data_builders import encoded_photo

from mmtune.data.datamodule import InstructionData
from mmtune.data.encoding import ModelInputs
from mmtune.data.mixture import Mixture

WriteLines = Callable[..., str]


def sides(source: str, inputs: ModelInputs, fraction: float, seed: int, *, visual: bool) -> tuple[set[int], set[int]]:
    """The numbers of the rows that are trained on, and of those that are held out."""
    mixture = Mixture([], [source], seed=seed) if visual else Mixture([source], seed=seed)
    data = InstructionData(mixture, validation_fraction=fraction, inputs=inputs, cache_tokens=False)
    data.setup()
    assert data._train is not None
    assert data._validation is not None
    train, held = (
        {int(e.where.rpartition(" ")[2]) for e in dataset.examples} for dataset in (data._train, data._validation)
    )
    assert not train & held
    return train, held


def test_rows_with_the_same_text_go_the_same_way(write_lines: WriteLines, text_inputs: ModelInputs) -> None:
    alone = [{"prompt": f"ask {n}", "completion": "x"} for n in range(12)]
    same = [
        {"prompt": "What?", "completion": "That."},
        {"messages": [{"role": "user", "content": "What? "}, {"role": "assistant", "content": "That.\n"}]},
        {"instruction": "What?", "output": "That.", "system": "Be brief."},
        {"conversations": [{"from": "human", "value": " What?"}, {"from": "gpt", "value": "That."}]},
    ]
    source = write_lines([*same, *alone])
    ways = set()
    for seed in range(12):
        train, held = sides(source, text_inputs, 0.5, seed, visual=False)
        assert len({1, 2, 3, 4} & held) in (0, 4)
        assert (len(train), len(held)) == (8, 8)  # groups fill the fraction
        ways.add(1 in held)
    assert ways == {True, False}


def test_what_only_looks_like_the_same_text(write_lines: WriteLines, text_inputs: ModelInputs) -> None:
    rows = [("a b", "c"), ("a", "b c"), ("a", "b"), ("A", "b"), ("b", "a")]
    source = write_lines([{"prompt": p, "completion": c} for p, c in rows])
    together = [sides(source, text_inputs, 0.4, seed, visual=False)[1] for seed in range(40)]
    assert all(len(held) == 2 for held in together)
    assert len({frozenset(held) for held in together}) == 10  # any two of the five


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """One photo under seven names; the last is in the row itself."""
    data = encoded_photo(1)
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(data)
    (folder / "copy.jpg").write_bytes(data)
    os.link(folder / "a.png", folder / "hard.png")
    (folder / "link.png").symlink_to(folder / "a.png")
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return [
        "a.png",
        "./a.png",
        "images/../images/a.png",
        "link.png",
        "hard.png",
        "copy.jpg",
        str(folder / "a.png"),
        uri,
    ]


def test_the_same_photo_under_whatever_name_goes_the_same_way(
    photos: list[str], tmp_path: Path, photo_inputs: ModelInputs
) -> None:
    others = []
    for shade in range(2, 10):  # as many bytes, or nearly
        (tmp_path / f"{shade}.png").write_bytes(encoded_photo(shade))
        others.append(f"{shade}.png")
    assert len({(tmp_path / name).stat().st_size for name in others}) < len(others)
    talk = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "That."}]
    rows = [{"image": name, "conversations": talk} for name in [*photos, *others]]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    ways = set()
    for seed in range(12):
        train, held = sides(str(tmp_path / "rows.json"), photo_inputs, 0.5, seed, visual=True)
        assert len(set(range(1, len(photos) + 1)) & held) in (0, len(photos))
        assert len(held) == len(train) == 8
        ways.add(1 in held)
    assert ways == {True, False}


def test_rows_of_validation_files_that_are_trained_on_are_counted(
    write_lines: WriteLines, text_inputs: ModelInputs, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write_lines([{"prompt": f"ask {n}", "completion": "x"} for n in range(5)])
    other = write_lines([{"prompt": f"ask {n}", "completion": "x"} for n in range(3, 9)], "other.jsonl")
    data = InstructionData(Mixture([train]), validation=[other], inputs=text_inputs, cache_tokens=False)
    data.setup()
    said = "--data.validation: 2 of 6 rows have the photo or the text of a row that is trained on\n"
    assert capsys.readouterr().err == said
    assert data.record["validation_rows_trained_on"] == 2
    assert data.record["rows"] == {"train": 5, "validation": 6}
