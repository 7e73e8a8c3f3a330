"""Qwen2 and Qwen3 the whole way by the command line: tune, score, export, and read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import qwen
from llava_parity import ASKED, same_logits_and_text, theirs
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmtune.cli.main import main
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.interop.chat_templates import template_of

TEMPLATES = {"qwen2-tied": qwen.QWEN2, "qwen3": qwen.QWEN3}
NO_THOUGHT = "<think>\n\n</think>\n\n"


def flags(options: dict[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module", params=TEMPLATES)
def tuned(
    request: pytest.FixtureRequest, llava_hf: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The architecture, and a run that tuned it on answers with and without thoughts."""
    folder = tmp_path_factory.mktemp("qwen")
    base = llava_hf(request.param, template=TEMPLATES[request.param])
    rows = [{"instruction": f"say {n}", "input": "", "output": "yes " * (n + 1)} for n in range(4)]
    rows += [{"instruction": "count", "input": "", "output": f"<think>\n{n}, then\n</think>\n\nmany"} for n in range(4)]
    (folder / "rows.json").write_text(json.dumps(rows))
    options = {
        "model.base": base,
        "model.lora.r": 4,
        "data.train.text": json.dumps([str(folder / "rows.json")]),
        "data.max_length": 256,
        "data.pack_tokens": 256,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 2,
        "trainer.enable_progress_bar": "false",
        "out": folder / "run",
    }
    assert main(["fit", *flags(options)]) == 0
    return request.param, folder / "run"


def test_the_template_is_the_models_own(tuned: tuple[str, Path]) -> None:
    name, run = tuned
    model = VisionLanguageModel.from_pretrained(run)
    assert model.base_language.config.model_type == name.partition("-")[0]
    assert model.spec.template == "tokenizer"
    assert model.thinking == ("optional" if name == "qwen3" else "never")


def test_scores_with_and_without_thoughts(
    tuned: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, run = tuned
    rows = [{"question": f"is {n} even", "answer": n % 2 == 0, "passage": f"It is {n}."} for n in range(4)]
    (folder := tmp_path / "hub" / "google" / "boolq" / "default").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "validation.parquet")
    command = ["eval", *flags({"model": run, "suite": "local9", "tasks": "boolq", "data-root": tmp_path})]
    assert main([*command, "--out", str(tmp_path / "at once")]) == 0
    assert main([*command, "--out", str(tmp_path / "likely"), "--answering", "likelihood"]) == 0
    status = main([*command, "--out", str(tmp_path / "thinking"), "--thinking-budget", "12"])
    if name != "qwen3":
        assert status == 2
        assert "has no way to think before it answers" in capsys.readouterr().err
        return
    assert status == 0
    result = json.loads((tmp_path / "thinking" / "results.json").read_text())["tasks"]["boolq"]
    assert (result["thinking_budget"], result["unparsed"]) == (12, 1.0)  # of random weights, no thought comes to an end
    lines = (tmp_path / "thinking" / "samples" / "boolq.jsonl").read_text().splitlines()
    assert all(json.loads(line)["response"] for line in lines)


def test_the_export_says_the_same_in_transformers(
    tuned: tuple[str, Path], photos: list[Image.Image], tmp_path: Path
) -> None:
    name, run = tuned
    out = tmp_path / "out"
    assert main(["export", str(run), "--to", "llava-hf", "-o", str(out)]) == 0
    model = VisionLanguageModel.from_pretrained(run)
    same_logits_and_text(model, out, photos)
    again = VisionLanguageModel.from_pretrained(out)
    assert (again.spec.template, again.thinking) == ("tokenizer", model.thinking)
    for text, seen in ASKED:
        shown = [photos[number] for number in seen]
        assert again.answer([text], [shown], max_tokens=12) == model.answer([text], [shown], max_tokens=12)

    assert main(["export", str(out), "--to", "llava-hf", "-o", str(tmp_path / "second")]) == 0
    for file in ("model.safetensors", "chat_template.jinja", "tokenizer.json"):
        assert (out / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file

    _, processor = theirs(out)
    asked = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    written = [
        processor.apply_chat_template(asked, add_generation_prompt=True, **mode)
        for mode in ({}, {"enable_thinking": False}, {"enable_thinking": True})
    ]
    if name == "qwen3":  # answers at once unless it is told to think
        assert [text.endswith(NO_THOUGHT) for text in written] == [True, True, False]
    else:
        assert len(set(written)) == 1


def test_the_merged_language_model_speaks_the_template_it_was_tuned_with(
    tuned: tuple[str, Path], tmp_path: Path
) -> None:
    _, run = tuned
    assert main(["export", str(run), "--to", "merged", "-o", str(tmp_path / "out")]) == 0
    model = VisionLanguageModel.from_pretrained(run)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "language")
    language = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "language")
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    said = language.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert model.answer(["Hi"], max_tokens=8) == [tokenizer.decode(said, skip_special_tokens=True)]
    assert VisionLanguageModel.from_pretrained(tmp_path / "out").thinking == model.thinking


def test_qwen3s_own_template_is_not_taken_for_chatml(llava_hf: Callable[..., Path]) -> None:
    """They write the same until an answer begins."""
    assert template_of(str(llava_hf("qwen3", template=qwen.QWEN3))) == "tokenizer"
