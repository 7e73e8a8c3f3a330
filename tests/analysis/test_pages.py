"""The pages: all that was compared is there, nothing of it acts, and nothing else is needed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from browser import needs_browser, visit
from evaluations import HOSTILE, Page, sample, write_evaluation

from mmtune.analysis import pages
from mmtune.analysis.compare import compare
from mmtune.analysis.pages import write_comparison_page


def check_safe(page: Page, scripts: int) -> None:
    """Nothing from outside is loaded, nothing is run but our own script, nothing hides."""
    assert len(page.of("script")) == scripts
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "base", "a"}
        assert not {name for name in attributes if name.startswith("on") or name in {"src", "href"}}
    assert "default-src 'none'" in page.source
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", page.source)
    for text in ("<script>alert(1)</script>", "[bold]x[/]", "␛[31mred", "⟨U+D800⟩", "⟨U+202E⟩", "&quot;'"):
        assert text in page.words


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[Path, Path]:
    fields = {"prompt": HOSTILE, "response": HOSTILE, "target": HOSTILE}
    old = [sample(0, 0, prediction=HOSTILE, **fields), sample(1, 1)]
    new = [sample(0, 1, prediction=None, **fields), sample(1, 0)]
    name = 't"><script>alert(2)</script>'.replace("/", "")
    a = write_evaluation(tmp_path / "a", {name: old, "see": [0, 1]}, model=HOSTILE)
    return a, write_evaluation(tmp_path / "b", {name: new, "see": [1, 1]}, model=HOSTILE)


def test_hostile_text_is_shown_and_does_nothing(hostile: tuple[Path, Path], tmp_path: Path) -> None:
    write_comparison_page(compare(hostile), tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    check_safe(page, scripts=1)
    assert len(page.of("article")) == 3
    assert {flip["data-task"] for flip in page.of("article")} == {'t"><script>alert(2)<script>', "see"}


def test_the_page_says_what_the_comparison_says(tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a", {"read": [0, 0, 1, 1, 0], "see": [0] * 40})
    b = write_evaluation(tmp_path / "b", {"read": [1, 1, 1, 0, 1], "see": [1] * 39 + [0], "new": [1]})
    c = write_evaluation(tmp_path / "c", {"read": [0, 0, 1, 1, 0], "see": [0] * 40})
    comparison = compare([a, b, c])
    write_comparison_page(comparison, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    for part in (
        "40.0 % 80.0 % +40.0",
        "Left out: new",
        "B against A",
        "C against A",
        "language, average",
        *comparison.method(),
    ):
        assert part in page.words
    assert len(page.of("article", **{"data-other": "B"})) == 43
    assert len(page.of("article", **{"data-way": "wrong"})) == 1
    assert not page.of("article", **{"data-other": "C"})
    assert [option.get("value") for option in page.of("option")][:3] == ["", "B", "C"]
    # zero stands in the middle of each drawing, and nothing outside it
    for style in re.findall(r'x="([\d.]+)%" width="([\d.]+)%"', page.source):
        left, width = map(float, style)
        assert 0 <= left <= left + width <= 100.01


def test_a_page_of_many_flips_says_where_the_rest_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "FLIPS_PER_TASK", 5)
    a, b = (write_evaluation(tmp_path / n, {"t": [score] * 12}) for n, score in (("a", 0), ("b", 1)))
    write_comparison_page(compare([a, b]), tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert len(page.of("article")) == 5
    assert "the first 5 of 12 are here" in page.words


@needs_browser
@pytest.mark.parametrize(
    ("typed", "way", "shown"),
    [("", "", 3), ("QUESTION 0", "", 1), ("", "wrong", 1), ("mred <SCRIPT>alert", "right", 1)],
)
def test_a_browser_runs_the_search_and_nothing_else(
    hostile: tuple[Path, Path], tmp_path: Path, typed: str, way: str, shown: int
) -> None:
    file = tmp_path / "page.html"
    write_comparison_page(compare(hostile), file)
    search = (
        f"<script>form.querySelector('input').value = {json.dumps(typed)}; form.way.value = {json.dumps(way)}; "
        "form.dispatchEvent(new Event('input'));</script>"
    )
    page = file.read_text(encoding="utf-8")
    # the page's own policy would let no other script through
    page = re.sub("<meta http-equiv[^>]*>", "", page).replace("</body>", search + "</body>")
    file.write_text(page, encoding="utf-8")
    dom, console = visit(file, tmp_path / "profile")
    assert not console
    assert f"{shown} of 3 shown" in dom
    assert dom.count("<article") - len(re.findall(r"<article[^>]* hidden", dom)) == shown


@needs_browser
def test_a_browser_shows_the_drawings_and_refuses_other_scripts(hostile: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    write_comparison_page(compare(hostile), file)
    assert not visit(file, tmp_path / "one").console
    page = file.read_text(encoding="utf-8").replace("</body>", "<script>document.title = 'run'</script></body>")
    file.write_text(page, encoding="utf-8")
    dom, console = visit(file, tmp_path / "two")
    assert "<title>run" not in dom
    assert any("Content Security Policy" in line for line in console)
