"""Rows and answers that are longer than what a model reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_models import Scripted, write_rows

from mmtune.common.errors import UserError
from mmtune.evaluation.run.engine import evaluate
from mmtune.evaluation.run.results import Results
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.spec import ModelSpec

TASK = """
name: {name}
version: 1
modality: language
dataset: {{path: toy/{name}, config: null, split: test}}
prompt: "{{{{ passage }}}} Say yes or no."
target: "{{{{ answer }}}}"
answer: yes_no
max_tokens: 30
metrics: [accuracy]
"""
FRAME = 19 + len(" Say yes or no.")  # tokens of template and question
WINDOW = 120


@pytest.fixture
def model(llama: Path) -> VisionLanguageModel:
    """A model that reads 120 tokens, each a byte."""
    model = VisionLanguageModel.assemble(ModelSpec(str(llama), template="chatml")).eval()
    model.base_language.config.max_position_embeddings = WINDOW
    return model


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two tasks; the second has a row that fits with room for 10 tokens, and one that does not fit."""
    for name, lengths in (("short", (5, 9)), ("long", (7, WINDOW - FRAME - 10, 400))):
        rows = [
            {"passage": f"{n}" + "abcde"[n % 5] * (length - 1), "answer": "yes"} for n, length in enumerate(lengths)
        ]
        write_rows(tmp_path, f"toy/{name}", None, "test", rows)
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name))
    (tmp_path / "both.yaml").write_text("name: both\ntasks: [short.yaml, long.yaml]\n")
    return tmp_path


def score(data: Path, model: Any, suite: str = "both", **options: Any) -> Results:
    return evaluate(model, data / f"{suite}.yaml", data_root=data, **options)


def test_rows_that_are_too_long_are_refused_before_anything_is_asked(data: Path, model: VisionLanguageModel) -> None:
    for answering, tokens in (("generate", FRAME + 400), ("likelihood", FRAME + 400 + 3)):
        told = (
            rf"task long: 1 row leaves no room in the 120 tokens that .* reads: row 2 \({tokens} tokens\); give --past"
        )
        with pytest.raises(UserError, match=told):
            score(data, model, answering=answering)
    assert model.usage["prompt_tokens"] == 0
    with pytest.raises(UserError, match="--past-window: unknown 'short'; did you mean 'shorten'"):
        score(data, model, past_window="short")


def test_rows_are_shortened_where_that_is_asked_for(
    data: Path, model: VisionLanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    out = data / "out"
    results = score(data, model, past_window="shorten", out=out)
    told = capsys.readouterr().err
    assert f"task long: 2 rows leave no room in the 120 tokens that {model.name} reads: row 1 (110 tokens)" in told
    assert [results.tasks[name].shortened for name in ("short", "long")] == [0, 2]
    samples = results.samples["long"]
    for sample in samples[1:]:
        kept = sample.prompt[-(WINDOW - 30 - 19) :]
        assert sample.response == model.answer(kept, max_tokens=30)
    assert samples[0].response == model.answer(samples[0].prompt, max_tokens=30)
    asked = model.usage["prompt_tokens"]
    assert score(data, model, past_window="shorten", out=out).samples["long"] == samples
    score(data, model, "short", out=out)  # of which no row is shortened
    assert model.usage["prompt_tokens"] == asked, "nothing was asked again"
    by_likelihood = score(data, model, past_window="shorten", answering="likelihood")
    assert by_likelihood.tasks["long"].shortened == 1


def test_an_answer_tells_why_it_ended(
    data: Path, model: VisionLanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = model.base_language.get_output_embeddings().weight
    marker.data[256:] = 0  # no marker ends an answer
    (data / "long.yaml").write_text(TASK.format(name="long") + "limit: 2\n")
    results = score(data, model, out=data / "out")
    assert [sample.finish_reason for sample in results.samples["long"]] == ["length", "window"]
    assert "long: the answer ends with the model's window in row 1 (`finish_reason`" in capsys.readouterr().err
    lines = (data / "out/samples/long.jsonl").read_text().splitlines()
    assert [json.loads(line)["finish_reason"] for line in lines] == ["length", "window"]
    first = results.samples["long"][0].response[3]
    (data / "long.yaml").write_text(TASK.format(name="long") + f"limit: 1\nstop: {json.dumps([first])}\n")
    assert score(data, model, "long").samples["long"][0].finish_reason == "stop"


def test_a_model_that_tells_no_window_is_asked_all(data: Path) -> None:
    results = score(data, Scripted(lambda _: "yes"), past_window="shorten")
    assert [sample.finish_reason for sample in results.samples["long"]] == ["stop"] * 3


def test_a_model_keeps_its_own_settings(data: Path, model: VisionLanguageModel) -> None:
    """What an evaluation sets holds within it alone: afterwards nothing is shortened unless the user says so."""
    before = (model.past_window, model.batch_tokens, model.share_prefixes)
    score(data, model, "long", past_window="shorten", batch_tokens=77, share_prefixes=False)
    assert (model.past_window, model.batch_tokens, model.share_prefixes) == before
    with pytest.raises(UserError):
        score(data, model, "long")
    assert (model.past_window, model.batch_tokens, model.share_prefixes) == before
