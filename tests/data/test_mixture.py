"""Drawing the training set: fractions, totals, and what cannot be drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_builders import encoded_photo
from hypothesis import given
from hypothesis import strategies as st

from mmtune.common.errors import UserError
from mmtune.data.conversation import Conversation
from mmtune.data.mixture import Mixture, composition
from mmtune.data.sources.readers import BadRows

TEXT_ROWS, VISUAL_ROWS = 40, 30


@pytest.fixture
def text(write_lines: Callable[..., str]) -> str:
    return write_lines([{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(TEXT_ROWS)], "text.jsonl")


@pytest.fixture
def visual(tmp_path: Path) -> str:
    (tmp_path / "a.png").write_bytes(encoded_photo())
    rows = [{"prompt": f"v{i}", "completion": "x", "image": "a.png" if i % 3 else None} for i in range(VISUAL_ROWS)]
    path = tmp_path / "visual.json"
    path.write_text(json.dumps(rows))
    return str(path)


def draw(mixture: Mixture) -> list[Conversation]:
    return mixture.draw(BadRows(), lambda conversation: conversation)


def shares(conversations: list[Conversation]) -> tuple[int, int]:
    photos = sum(bool(c.images) for c in conversations)
    return len(conversations) - photos, photos


# the visual file holds 10 rows without a photo, which count as text
@pytest.mark.parametrize(
    ("fraction", "total", "expected"),
    [
        (1.0, None, (50, 0)),
        (0.0, None, (0, 20)),
        (0.5, None, (20, 20)),
        (None, None, (50, 20)),
        (None, 35, (25, 10)),
        (0.88, None, (49, 7)),
        (0.88, 25, (22, 3)),
        (0.5, 1, (0, 1)),
        (1.0, 50, (50, 0)),
    ],
)
def test_shares(fraction: float | None, total: int | None, expected: tuple[int, int], text: str, visual: str) -> None:
    drawn = draw(Mixture([text], [visual], fraction, total))
    assert shares(drawn) == expected
    assert len({(c.source, c.row) for c in drawn}) == len(drawn)


@given(
    available=st.tuples(st.integers(0, 500), st.integers(0, 500)).filter(any),
    fraction=st.none() | st.floats(0, 1) | st.sampled_from([0.0, 0.5, 0.88, 1.0]),
)
def test_without_a_total_nothing_more_could_be_drawn(available: tuple[int, int], fraction: float | None) -> None:
    try:
        drawn = Mixture(text_fraction=fraction)._counts(*available)
    except UserError as error:
        assert "the mixture is empty" in str(error)  # noqa: PT017  # only where a wanted kind is (nearly) missing
        return
    total = sum(drawn)
    assert all(0 <= count <= there for count, there in zip(drawn, available, strict=True))
    if fraction is None:
        assert drawn == available
    else:
        assert abs(drawn[0] - total * fraction) <= 0.5 + 1e-6
        wants = (total + 1) * fraction, (total + 1) * (1 - fraction)
        assert any(wanted > there - 1e-6 for wanted, there in zip(wants, available, strict=True))


@pytest.mark.parametrize(
    ("fraction", "total", "message"),
    [
        (1.0, 51, "asks for 51 text rows and the sources hold 50"),
        (0.0, 21, "asks for 21 visual rows and the sources hold 20"),
        (0.5, 60, "asks for 30 visual rows and the sources hold 20"),
        (None, 100, "rows and the sources hold"),
    ],
)
def test_impossible_mixtures(fraction: float | None, total: int, message: str, text: str, visual: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        draw(Mixture([text], [visual], fraction, total))
    assert "lower --data.train.total" in str(error.value)


def test_a_kind_that_is_missing_altogether(text: str) -> None:
    with pytest.raises(UserError, match="the mixture is empty"):
        draw(Mixture([text], text_fraction=0.0))


def test_the_seed_decides_which_rows_and_their_order(text: str, visual: str) -> None:
    def rows(seed: int) -> list[tuple[str, int]]:
        return [(c.source, c.row) for c in draw(Mixture([text], [visual], 0.5, 20, seed))]

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)
    assert set(rows(1)) != set(rows(2))
    kinds = [source for source, _ in rows(1)]
    assert kinds != sorted(kinds)  # shuffled through each other


def test_photos_under_text_are_an_error(visual: str) -> None:
    with pytest.raises(UserError, match=r"row 2: has a photo; give it under --data\.train\.visual"):
        draw(Mixture([visual]))
    bad = BadRows("skip")
    assert len(Mixture([visual]).draw(bad, lambda conversation: conversation)) == 10
    assert len(bad.skipped) == 20


def test_no_sources_and_no_usable_rows(write_lines: Callable[..., str]) -> None:
    with pytest.raises(UserError, match="no training data"):
        draw(Mixture())
    source = write_lines(["{"])
    with pytest.raises(UserError, match=r"no row of the sources can be used; the first one left out: .*row 1"):
        Mixture([source]).draw(BadRows("skip"), lambda conversation: conversation)


@pytest.mark.parametrize("values", [{"text_fraction": 1.1}, {"text_fraction": -0.1}, {"total": 0}])
def test_values_out_of_range(values: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        Mixture(**values)  # type: ignore[arg-type]


def test_composition(text: str, visual: str) -> None:
    assert composition((c.source, bool(c.images)) for c in draw(Mixture([text], [visual]))) == {
        text: {"text": 40, "visual": 0},
        visual: {"text": 10, "visual": 20},
    }


@pytest.mark.parametrize(
    ("fraction", "total", "expected"),
    [(0.5, 20, (10, 10)), (0.5, None, (10, 10)), (None, None, (25, 10)), (1.0, 20, (20, 0)), (1.0, None, (25, 0))],
)
def test_a_row_that_cannot_be_used_is_replaced(
    fraction: float | None, total: int | None, expected: tuple[int, int], text: str, visual: str
) -> None:
    asked: list[tuple[str, int]] = []

    def odd(conversation: Conversation) -> Conversation | None:
        asked.append((conversation.source, conversation.row))
        return conversation if conversation.row % 2 else None

    drawn = Mixture([text], [visual], fraction, total).draw(BadRows(), odd)
    assert shares(drawn) == expected
    assert all(c.row % 2 for c in drawn)
    assert len(asked) == len(set(asked))


def test_too_few_rows_that_can_be_used(text: str) -> None:
    with pytest.raises(UserError, match="asks for 30 text rows and the sources hold 20 that can be used"):
        Mixture([text], total=30).draw(
            BadRows(), lambda conversation: conversation.row if conversation.row % 2 else None
        )


def test_no_row_is_looked_at_that_is_not_needed(text: str) -> None:
    seen: list[int] = []
    drawn = Mixture([text], total=5).draw(BadRows(), lambda conversation: seen.append(conversation.row) or seen[-1])
    assert sorted(seen) == sorted(drawn)
    assert len(seen) == 5


@pytest.mark.parametrize("change", [lambda lines: lines[:-1], lambda lines: lines + lines[-1:]])
def test_a_source_that_changes_between_its_two_readings_is_an_error(
    change: Callable[[list[str]], list[str]], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Mixture._counts

    def changing(*args: Any) -> tuple[int, int]:
        Path(text).write_text("".join(change(Path(text).read_text().splitlines(keepends=True))))
        return counts(*args)

    monkeypatch.setattr(Mixture, "_counts", changing)
    with pytest.raises(UserError, match="the training data has changed while it was read"):
        draw(Mixture([text], total=5))


def test_rows_that_a_file_names_are_left_out(text: str, visual: str, tmp_path: Path) -> None:
    everything = draw(Mixture([text], [visual]))
    hits = [{"source": c.source, "row": c.row, "task": "a set"} for c in everything[:7]]
    # however the path is written
    hits[0]["source"] = str(
        Path(str(hits[0]["source"])).parent / "." / ".." / tmp_path.name / Path(str(hits[0]["source"])).name
    )
    file = tmp_path / "hits.json"
    file.write_text(json.dumps({"hits": [*hits, hits[3]]}))
    kept = draw(Mixture([text], [visual], leave_out=str(file)))
    assert {c.where for c in kept} == {c.where for c in everything[7:]}
    assert len(kept) == len(everything) - 7

    file.write_text(
        json.dumps({"hits": [{"source": source, "row": n + 1} for source in (text, visual) for n in range(99)]})
    )
    with pytest.raises(UserError, match=r"--data\.train\.leave_out .*hits\.json: names every row of the sources"):
        draw(Mixture([text], [visual], leave_out=str(file)))


@pytest.mark.parametrize(
    "content", ["{}", '{"hits": 3}', '{"hits": [{"source": "a"}]}', '{"hits": [{"source": "a", "row": "b"}]}']
)
def test_a_file_that_names_no_rows_is_refused(text: str, tmp_path: Path, content: str) -> None:
    file = tmp_path / "hits.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"--data\.train\.leave_out .*hits\.json: needs 'hits'"):
        draw(Mixture([text], leave_out=str(file)))
