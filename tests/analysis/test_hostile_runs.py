"""A run in which every text is hostile: its pages hold our script and nothing else that acts."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml
from evaluations import Page, sample, write_evaluation, write_run

from mmtune.analysis.compare import compare
from mmtune.analysis.pages import embedded_json, write_comparison_page
from mmtune.analysis.report import write_report
from mmtune.analysis.variants import TrainedRun, Variant

EVIL = (
    "</script><script>alert(1)</script><!--<script> --!> ]]> \u2028\u2029 \"'><img src=x onerror=alert(1)>"
    "<svg onload=a()> javascript:alert(1) data:text/html,<b> &lt;b&gt; &#60;b&#62; {{ 7 * 7 }} ${a} `a`"
    " \u202e\x1b[2J </style></title>"
)
KEPT = {"modality", "id"}


def hostile(value: Any) -> Any:
    """The same with every text replaced, and every key that is not of a fixed name added."""
    if isinstance(value, str):
        return EVIL
    if isinstance(value, list):
        return [hostile(one) for one in value]
    if isinstance(value, dict):
        more = {} if any(isinstance(one, int | float) for one in value.values()) else {EVIL: EVIL}
        return {key: one if key in KEPT else hostile(one) for key, one in value.items()} | more
    return value


def spoil(run: Path) -> None:
    """Make every text of a run's files hostile; what names a file keeps its name."""
    for file in (run / "ledger.json", run / "eval" / "results.json"):
        held = json.loads(file.read_text())
        tasks = held.pop("tasks", None)
        spoiled = hostile(held)
        if tasks is not None:
            spoiled["tasks"] = {name: hostile(task) for name, task in tasks.items()}
        file.write_text(json.dumps(spoiled))
    config = run / "config.yaml"
    config.write_text(
        yaml.safe_dump(hostile(yaml.safe_load(config.read_text())) | {"seed_everything": EVIL + run.name})
    )
    for file in (run / "eval" / "samples").glob("*.jsonl"):
        rows = [hostile(json.loads(line)) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Elements(HTMLParser):
    """What a browser would make elements of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []
        self.acting: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.scripts.append(dict(attrs))
        if tag in ("iframe", "object", "embed", "base", "link") or any(n.startswith("on") for n, _ in attrs):
            self.acting.append(tag)
        for name, value in attrs:
            link = name in ("href", "src", "srcset", "action", "xlink:href") and value is not None
            if link and not value.startswith(("#", "data:image/")):  # type: ignore[union-attr]
                self.acting.append(f"{tag} {name}={value}")


def check(file: Path, data: int) -> None:
    text = file.read_text(encoding="utf-8")
    found = Elements(text)
    assert found.acting == []
    assert [one.get("type") for one in found.scripts].count("application/json") == data
    assert len(found.scripts) == data + 1
    assert text.lower().count("<script") == text.lower().count("</script") == data + 1
    assert "<!--" not in text
    assert "default-src 'none'" in text
    assert not set("\u2028\u2029\u202e\x1b") & set(text)
    assert len(Page(file).of("title")) == 1


def test_pages_of_a_run_in_which_every_text_is_hostile(tmp_path: Path) -> None:
    name = EVIL.replace("/", "")[:60]
    runs = []
    for number in range(2):
        run = write_run(tmp_path / f"{number}{name}")
        write_evaluation(run / "eval", {name: [sample(0, number), sample(1, 1 - number)], f"see{name}": [1, 0]})
        spoil(run)
        runs.append(run)
    variants = [Variant(f"{EVIL}{n}", [TrainedRun.read(run / "eval", run)]) for n, run in enumerate(runs)]
    write_report(variants, tmp_path / "r.html", title=EVIL, tables=tmp_path / "tables")
    check(tmp_path / "r.html", data=1)
    write_comparison_page(compare([run / "eval" for run in runs]), tmp_path / "c.html")
    check(tmp_path / "c.html", data=0)
    for table in (tmp_path / "tables").glob("*.csv"):
        assert not [line for line in table.read_text().splitlines() if line.startswith(("=", "+", "-", "@", "\t"))]


def test_json_in_a_page_cannot_end_its_element() -> None:
    text = str(embedded_json({EVIL: [EVIL]}))
    assert json.loads(text) == {EVIL: [EVIL]}
    assert text.isascii()
    assert not set("<>&") & set(text)
