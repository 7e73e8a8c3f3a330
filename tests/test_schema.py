"""Values of JSON and YAML become dataclasses as they are, or are refused in a line that names the key."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from mmtune.common.errors import UserError
from mmtune.common.schema import COMPUTED, Natural, NullIsAbsent, Number, Positive, Share, Texts, fits, one_of, validate


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    size: Positive
    share: Share = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole(NullIsAbsent):
    name: str
    kind: Literal["tall", "wide"] = "tall"
    part: Part | None = None
    parts: tuple[Part, ...] = ()
    words: Annotated[Texts, one_of(("alpha", "beta"))] = ()
    key: int | str = 0
    flag: bool = False
    counts: dict[str, Natural] | None = None
    cost: Number = 0.0
    where: Annotated[str, COMPUTED] = ""


def test_values_are_taken_as_they_are() -> None:
    value = {
        "name": "a",
        "kind": None,
        "part": {"size": 1},
        "parts": [{"size": 2, "share": 1}],
        "words": "beta",
        "key": "k",
    }
    whole = validate(Whole, value, "f.yaml")
    assert whole == Whole(name="a", part=Part(size=1), parts=(Part(size=2, share=1),), words=("beta",), key="k")
    assert validate(Whole, {"name": "a", "words": ["beta", "alpha"], "cost": 3}, "f.yaml").words == ("beta", "alpha")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nam": "a", "name": None}, "unknown key 'nam'; did you mean 'name'?"),
        ({"name": None}, "key 'name' is missing; add it"),
        ({"where": "x"}, "unknown key 'where'; choose one of: cost, counts, flag, key, kind, name, part, parts, words"),
        ({1: 2}, "key 1 must be text; put it in quotes"),
        ({"name": 3}, "name: must be text, not 3; put it in quotes"),
        ({"name": b"a"}, "name: must be text, not b'a'; put it in quotes"),
        ({"kind": "tal"}, "kind: unknown 'tal'; did you mean 'tall'?"),
        ({"kind": datetime.date(2026, 1, 2)}, "kind: unknown datetime.date(2026, 1, 2); choose one of: tall, wide"),
        ({"part": []}, "part: must be a mapping of keys to values, not []"),
        ({"part": {"size": "1"}}, "part: size: must be a whole number, not '1'"),
        ({"part": {"size": 1.0}}, "part: size: must be a whole number, not 1.0"),
        ({"part": {"size": True}}, "part: size: must be a whole number, not True"),
        ({"part": {"size": 0}}, "part: size: must be at least 1, not 0"),
        ({"part": {"size": 1, "shar": 1}}, "part: unknown key 'shar'; did you mean 'share'?"),
        ({"part": {"size": 1, "share": True}}, "part: share: must be a number, not True"),
        ({"parts": [{"size": 1}, {"size": 1, "share": 1.5}]}, "parts: entry 2: share: must be at most 1, not 1.5"),
        ({"parts": [{"size": 1}, {"siz": 1}]}, "parts: entry 2: unknown key 'siz'; did you mean 'size'?"),
        ({"parts": [3]}, "parts: every entry must be a mapping of keys to values, not 3"),
        ({"parts": {"size": 1}}, "parts: must be a list, not {'size': 1}"),
        ({"words": ["alpa"]}, "words: unknown 'alpa'; did you mean 'alpha'?"),
        ({"words": {"alpha"}}, "words: must be a list, not {'alpha'}"),
        ({"words": ["alpha", None]}, "words: every entry must be text, not None; put it in quotes"),
        ({"key": True}, "key: must be a whole number or text, not True"),
        ({"flag": "yes"}, "flag: must be true or false, not 'yes'"),
        ({"counts": {"a": -1}}, "counts: a: must be at least 0, not -1"),
        ({"cost": float("inf")}, "cost: must be a finite number, not inf"),
        ({"cost": 10**400}, "cost: must be a number, not 1000"),
        ({"cost": "x" * 1000}, "cost: must be a number, not 'xxx"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[Any, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        validate(Whole, {"name": "a"} | change, "f.yaml")
    assert str(error.value).startswith(f"f.yaml: {message}")
    assert len(str(error.value)) < 200


def test_files_that_are_no_mappings_and_what_to_do() -> None:
    with pytest.raises(UserError, match=r"^f\.yaml: must be a mapping of keys to values$"):
        validate(Part, [3], "f.yaml")
    with pytest.raises(UserError, match=r"^f\.json: key 'size' is missing; write it again$"):
        validate(Part, {"sizes": 1}, "f.json", extra="ignore", remedy="write it again")


def test_whether_a_value_fits() -> None:
    assert fits(Part, {"size": 1})
    assert not fits(Part, {"size": 1, "sizes": 2})
    assert [fits(Number, value) for value in (1, 0.5, True, "1", None, float("nan"))] == [True, True] + [False] * 4
