"""The report: its figures are those of the files, it shows what it is given, and nothing in it acts."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from browser import needs_browser, visit
from evaluations import HOSTILE, Page, sample, write_evaluation, write_run

from mmtune.analysis import samples
from mmtune.analysis.report import write_report
from mmtune.analysis.variants import TrainedRun, Variant, read_variants
from mmtune.cli.main import main

EVIL = '</script><img src=x onerror="document.title=1">'.replace("/", "∕")  # a file's name cannot hold a slash
FOUR_PICTURES = ["score-against-flops", "scores", "tokens", "loss"]


def trained(root: Path, name: str, tasks: dict[str, Any], **options: Any) -> Path:
    run = write_run(root / name, **options)
    write_evaluation(run / "eval", tasks, model=str(run))
    return run


def embedded(page: Page) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.source, re.DOTALL)
    data: dict[str, Any] = json.loads(found[0])
    assert len(found) == 1
    return data


def figures(page: Page, table: str) -> list[float]:
    part = page.source.split(f'id="{table}"')[1].split("</table>")[0]
    return [float(value) for value in re.findall(r'<data value="([^"]*)"', part)]


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    text = trained(tmp_path, "text", {"read": [1, 0, 1], "see": [1, 1, 0]}, flops=1e12, seed_everything=1)
    photos = trained(tmp_path, "photos", {"read": [0, 0, 1], "see": [1, 0, 0]}, flops=3e12, seed_everything=2)
    return [text, photos]


def test_figures_of_page_and_tables_are_those_of_the_files(pair: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    warned = write_report(read_variants(pair), out / "r.html", title="t", plots=out / "plots", tables=out / "tables")
    assert warned == []
    results = [json.loads((run / "eval" / "results.json").read_text())["tasks"] for run in pair]
    ledgers = [json.loads((run / "ledger.json").read_text()) for run in pair]
    page = Page(out / "r.html")
    shown = figures(page, "score-table")
    for place, task in enumerate(("read", "see")):
        expected = [value for one in results for value in (one[task]["score"], one[task]["stderr"])]
        assert shown[4 * place : 4 * place + 4] == expected
    assert shown[16:20:2] == [(one["read"]["score"] + one["see"]["score"]) / 2 for one in results]
    per_variant = [figures(page, "cost-table")[10 * i : 10 * i + 10] for i in (0, 1)]
    for ledger, row in zip(ledgers, per_variant, strict=True):
        tokens = ledger["tokens"]
        assert row[:6] == [ledger["samples"], *(tokens[k] for k in ("text", "supervised", "image", "pad")), 7]
        assert row[6:8] == [sum(ledger["flops"].values()), ledger["train_s"]]
    assert per_variant[0][8:] == pytest.approx([3, 3])
    with (out / "tables" / "scores.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["set"] != "average"]
    for variant, one in zip(("text", "photos"), results, strict=True):
        mine = {row["set"]: (float(row["score"]), float(row["stderr"])) for row in rows if row["variant"] == variant}
        assert mine == {task: (value["score"], value["stderr"]) for task, value in one.items()}
    with (out / "tables" / "costs.csv").open(newline="") as stream:
        for row, ledger in zip(csv.DictReader(stream), ledgers, strict=True):
            assert float(row["flops"]) == sum(ledger["flops"].values())
            assert float(row["seconds"]) == ledger["train_s"]
            assert int(row["tokens_text"]) == ledger["tokens"]["text"]
    kinds = {f"{name}.{kind}" for name in FOUR_PICTURES for kind in ("svg", "png")}
    assert {file.name for file in (out / "plots").iterdir()} == kinds
    assert (out / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_samples_settings_and_versions(pair: list[Path], tmp_path: Path) -> None:
    write_report(read_variants(pair), tmp_path / "r.html", title="t", samples=2)
    page = Page(tmp_path / "r.html")
    data = embedded(page)
    assert data["variants"] == ["text", "photos"]
    assert data["rows"][1] == [0, "1", "Question 1?", "yes", -1, [["no", "", 0], ["no", "", 0]]]
    assert len(data["rows"]) == 4
    assert "read, 2 of 3; see, 2 of 3" in page.words
    assert "seed_everything text: 1 photos: 2" in page.words
    assert "training, torch 2.0" in page.words
    assert [one["class"] for one in page.of("picture")] == ["light", "dark"] * 4


def test_seeds_of_one_variant(tmp_path: Path) -> None:
    runs = [trained(tmp_path, f"s{i}", {"read": [1, i]}, seed_everything=i) for i in (0, 1)]
    write_report(read_variants([f"variant={run}" for run in runs]), tmp_path / "r.html", title="t")
    page = Page(tmp_path / "r.html")
    assert "variant (2 seeds)" in page.words
    assert "√(s²/n + mean e²)" in page.words
    assert figures(page, "score-table")[:2] == [0.75, pytest.approx((0.125 / 2 + 0.01**2) ** 0.5)]


def test_without_ledger_metrics_vision_or_tasks_that_compare(tmp_path: Path) -> None:
    alone = write_evaluation(tmp_path / "alone", {"read": [1, 0]})
    write_report(read_variants([alone]), tmp_path / "a.html", title="t", tables=tmp_path / "t", plots=tmp_path / "p")
    page = Page(tmp_path / "a.html")
    assert "None of these has a ledger" in page.words
    assert [img["alt"] for img in page.of("img")] == ["Scores by set; the figures are in the tables"] * 2
    assert "vision" not in page.words
    run = trained(tmp_path, "run", {"read": [1, 0]})
    (run / "metrics.csv").unlink()
    write_report(read_variants([alone, run]), tmp_path / "b.html", title="t")
    page = Page(tmp_path / "b.html")
    assert "Training loss" not in page.words
    assert "no ledger: not trained here" in page.words
    other = write_evaluation(tmp_path / "other", {"read": [1]}, changes={"read": {"protocol": "mlan"}})
    warned = write_report(read_variants([alone, other]), tmp_path / "c.html", title="t", tables=tmp_path / "t")
    assert "does not compare" in warned[0]
    assert warned[0] in Page(tmp_path / "c.html").words
    assert embedded(Page(tmp_path / "c.html"))["rows"][1][5] == [["no", "", 0], None]


def test_photos_as_the_evaluation_kept_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a" * 64, "b" * 64, "c" * 64, "../../x"]
    rows = [sample(i, 1, image=name) for i, name in enumerate(names)]
    folder = write_evaluation(tmp_path / "e", {"see": rows})
    (folder / "thumbnails").mkdir()
    with zipfile.ZipFile(folder / "thumbnails" / "see.zip", "w") as archive:
        archive.writestr(f"{names[0]}.jpg", b"\xff\xd8\xff" + bytes(20))
        archive.writestr(f"{names[1]}.jpg", b"<svg onload=alert(1)>")
        archive.writestr(f"{names[2]}.jpg", b"\xff\xd8\xff" + bytes(900))
    monkeypatch.setattr(samples, "IMAGE_BYTES", 100)
    write_report(read_variants([folder]), tmp_path / "r.html", title="t")
    page = Page(tmp_path / "r.html")
    data = embedded(page)
    assert [base64.b64decode(photo) for photo in data["images"]] == [b"\xff\xd8\xff" + bytes(20)]
    assert [row[4] for row in data["rows"]] == [0, -1, -1, -1]
    assert "1 of 3 photos are in this page" in page.words
    (folder / "thumbnails" / "see.zip").write_bytes(b"damaged")
    write_report(read_variants([folder]), tmp_path / "r.html", title="t")
    assert embedded(Page(tmp_path / "r.html"))["images"] == []


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("hostile")
    fields = {"prompt": EVIL + HOSTILE, "response": HOSTILE + "</script><script>alert(3)</script>", "target": HOSTILE}
    tasks = {EVIL: [sample(0, 0, prediction=HOSTILE, **fields), sample(1, 1)], "see $x_1$": [1, 0]}
    runs = []
    for i in (0, 1):
        run = trained(tmp_path, f"{i}{EVIL}", tasks, seed_everything=HOSTILE.replace("\ud800", "") + str(i))
        ledger = json.loads((run / "ledger.json").read_text())
        ledger["versions"] = {HOSTILE: HOSTILE}
        (run / "ledger.json").write_text(json.dumps(ledger))
        runs.append(TrainedRun.read(run / "eval", run))
    variants = [Variant("<b>\u202e$\\frac", [runs[0]], (HOSTILE,), {"see $x_1$": HOSTILE}), Variant(EVIL, [runs[1]])]
    write_report(variants, tmp_path / "r.html", title=HOSTILE, plots=tmp_path / "plots", tables=tmp_path / "tables")
    return tmp_path / "r.html"


def test_hostile_text_is_shown_and_does_nothing(hostile: Path) -> None:
    page = Page(hostile)
    assert [one.get("type") for one in page.of("script")] == ["application/json", None]
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "base", "a", "b"}
        assert not {name for name in attributes if name.startswith("on") or name in {"href", "style"}}
        for name in ("src", "srcset"):
            assert attributes.get(name, "data:image/svg+xml;base64,").startswith("data:image/svg+xml;base64,")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", page.source)
    policy = page.of("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"] or ""
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert embedded(page)["rows"][0][5][0][1].endswith("</script><script>alert(3)</script>")
    assert "⟨U+202E⟩" in embedded(page)["rows"][0][3]
    for svg in (hostile.parent / "plots").glob("*.svg"):
        text = svg.read_text()
        assert "<script" not in text
        assert "<img" not in text
        assert "\u202e" not in text
    assert "⟨U+202E⟩\\$\\textbackslash{}frac" in (hostile.parent / "tables" / "scores.tex").read_text()


@needs_browser
@pytest.mark.parametrize(
    ("fragment", "shown"),
    [("", 4), ("#search=QUESTION+1?", 2), ("#search=alert(3)", 1), ("#search=nowhere", 0), ("#task=see+$x_1$", 2)],
)
def test_a_browser_runs_the_search_and_nothing_else(hostile: Path, tmp_path: Path, fragment: str, shown: int) -> None:
    dom, console = visit(hostile, tmp_path / "profile", fragment)
    assert not console
    assert f"{shown} of 4 samples" in dom
    assert dom.count('<article class="sample"') == shown
    (tmp_path / "dom.html").write_text(dom)
    for tag, attributes in Page(tmp_path / "dom.html").elements:
        assert not {name for name in attributes if name.startswith("on")}
        assert tag != "img" or (attributes["src"] or "").startswith("data:image/")
    assert "<title>1</title>" not in dom


@needs_browser
def test_a_browser_copes_with_many_samples_and_shows_photos(tmp_path: Path) -> None:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "JPEG")
    many = [sample(i, i % 2, prompt=f"Is {i} odd?", image="a" * 64) for i in range(20_000)]
    first = write_evaluation(tmp_path / "first", {"see": many})
    second = write_evaluation(tmp_path / "second", {"see": [row | {"score": 1.0} for row in many]})
    (first / "thumbnails").mkdir()
    with zipfile.ZipFile(first / "thumbnails" / "see.zip", "w") as archive:
        archive.writestr(f"{'a' * 64}.jpg", stream.getvalue())
    write_report(read_variants([first, second]), tmp_path / "r.html", title="t", samples=20_000)
    dom, console = visit(tmp_path / "r.html", tmp_path / "p1", "#show=up")
    assert not console
    assert "10,000 of 20,000 samples, 30 shown" in dom
    assert dom.count('src="data:image/jpeg;base64,') == 30
    dom, _ = visit(tmp_path / "r.html", tmp_path / "p2", "#search=is+19999+odd")
    assert "1 of 20,000 samples" in dom


def test_the_command(pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    flags = ["-o", str(out / "r.html"), "--plots", str(out / "p"), "--tables", str(out / "t"), "--title", "mine"]
    assert main(["report", f"a={pair[0]}", f"b={pair[1]}", *flags]) == 0
    assert str(out / "r.html") in capsys.readouterr().out
    assert "mine" in Page(out / "r.html").words
    assert len(list((out / "t").iterdir())) == 4


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["nothing"], "nothing: no such folder"),
        (["{run}", "--samples", "-1"], "--samples -1"),
        (["{run}", "-o", "{run}"], "is a folder"),
        (["{run}", "-o", "{run}/ledger.json/r.html"], "cannot be written"),
        (["{run}", "--baseline", "x"], "--baseline x: no such variant"),
        (["{run}", "--plot", "x"], "mmtune report --help"),
    ],
)
def test_mistakes_are_one_line(
    pair: list[Path], flags: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *(flag.format(run=pair[0]) for flag in flags)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert part in error
