"""What is quoted of data, and the card of a model, act neither on a terminal nor as Markdown."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pictures import png_saying

from mmtune.analysis.card import model_card
from mmtune.cli.main import main
from mmtune.common.errors import RowError
from mmtune.data.images import load_image

EVIL = "\x1b]0;owned\x07\x1b[2J\u202e\u2066 [bold]x[/] <script>alert(1)</script> ![i](http://x/i.png) [l](javascript:a)"
ACTS = ("\x1b", "\x07", "\u202e", "\u2066", "\r", "\x9b")


@pytest.mark.parametrize(
    "row",
    [
        {EVIL: "a"},
        {"prompt": "a", "completion": "b", "image": EVIL},
        {"messages": [{"role": EVIL, "content": "a"}]},
        {"conversations": [{"from": "human", "value": EVIL}, {"from": EVIL, "value": EVIL}]},
    ],
)
def test_what_a_message_quotes_does_not_act_on_the_terminal(
    row: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"r{EVIL.replace('/', '')}.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert main(["data", str(file), "--template", "chatml"]) in (0, 2)
    said = "".join(capsys.readouterr())
    assert "row 1: " in said
    assert not [sign for sign in ACTS if sign in said]


def test_what_is_shown_of_rows_does_not_act_on_the_terminal(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"r{EVIL.replace('/', '')}.jsonl"
    file.write_text(json.dumps({"prompt": EVIL, "completion": EVIL}) + "\n")
    assert main(["data", str(file), "--template", "chatml", "--tokenizer", str(llama), "--show", "1"]) == 0
    said = "".join(capsys.readouterr())
    assert "[bold]x[/]" in said
    assert not [sign for sign in ACTS if sign in said]


def test_what_fit_says_of_rows_does_not_act_on_the_terminal(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ({"prompt": "a", "completion": "b"}, {EVIL: "a"})))
    flags = [f"--model.language={llama}", "--model.template=chatml", "--trainer.accelerator=cpu"]
    flags += ["--data.on_bad_row=skip", f'--data.train.text=["{file}"]', "--trainer.enable_progress_bar=false"]
    assert main(["fit", *flags, f"--out={tmp_path / 'run'}"]) == 0
    said = capsys.readouterr().out  # bars of libraries, which go back to the start of their line, are on stderr
    assert "Left out 1 row that" in said
    assert "[bold]x[/]" in said
    assert not [sign for sign in ACTS if sign in said]


def flat(tokens: list[Token]) -> list[Token]:
    return [t for token in tokens for t in (token, *flat(token.children or []))]


def test_nothing_of_others_acts_in_a_card(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "eval").mkdir(parents=True)
    model = {"base": EVIL, "stage": f"{EVIL}\n# heading\n---"}
    (run / "config.yaml").write_text(yaml.safe_dump({"model": model, "seed_everything": EVIL}))
    sources = {EVIL + "|\n| a": {"text": EVIL, "visual": "```"}}
    (run / "data.json").write_text(json.dumps({"sources": sources, "fingerprints": {EVIL: EVIL}}))
    tasks = {EVIL: {"n": EVIL, "metric": EVIL, "score": 0.5, "protocol": "`x` &lt;b&gt;"}}
    (run / "eval" / "results.json").write_text(json.dumps({"model": str(run), "suite": EVIL, "tasks": tasks}))
    (run / "ledger.json").write_text(json.dumps({"samples": EVIL, "hardware": {EVIL: EVIL}}))
    spec = {
        **{"language": EVIL, "projector": EVIL, "template": EVIL, "lora": {"r": EVIL}},
        "vision": {"tower": EVIL, "weights": f"{EVIL}\n---\n"},
    }
    text = model_card(str(run), spec, "merged")
    assert not [sign for sign in ACTS if sign in text]
    _, front, body = text.split("---\n", 2)
    assert set(yaml.safe_load(front)) == {"library_name", "pipeline_tag", "tags"}
    tokens = flat(MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(body))
    kinds = {token.type for token in tokens}
    assert not {"html_inline", "html_block", "image", "code_inline"} & kinds
    assert [token.attrs["href"] for token in tokens if token.type == "link_open"] == [
        "https://arxiv.org/abs/2411.10557"
    ]
    assert sum(token.type == "heading_open" for token in tokens) == 7
    # every table has the columns of its head: no text of others begins a cell
    assert [token.content for token in tokens].count("<script>") == 0
    assert "alert(1)" in body


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 1), (300_000, 1_000)])
def test_a_photo_that_is_far_too_large_is_refused_undecoded(size: tuple[int, int]) -> None:
    """A few hundred bytes that say they are gigabytes."""
    with pytest.raises(RowError, match=r"rows, row 1: the photo of \d+ bytes cannot be decoded: .*pixels"):
        load_image(png_saying(*size, zlib.compress(bytes(1000))), "rows, row 1")
