"""`mmtune quickstart`: tuning of a small model on text alone, with language and vision scores before and after."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from mmtune.analysis.records import PairedSample, TaskChange, paired_samples, read_results, task_changes
from mmtune.analysis.report import write_report
from mmtune.analysis.tables import change_table, cost_lines, example_table
from mmtune.analysis.variants import read_variants
from mmtune.cli.shared.flags import build_parser, parse
from mmtune.common.errors import UserError
from mmtune.common.files import claim_folder, is_blank, read_json, write_json
from mmtune.common.schema import validate
from mmtune.common.signals import run_chain
from mmtune.experiments.quickstart.data import prepare
from mmtune.experiments.recorded_inputs import changed, inputs_of

RECORD = "quickstart.json"
ALIGNED = "package:mmtune/assets/quickstart"
# evaluation rows of each task, and optimizer steps
BUDGETS = {"full": (100, 120), "small": (12, 4)}


@dataclass
class QuickstartOptions:
    """Tune a small real model on text instructions alone, and score it before and after.

    Attributes:
        out: the run directory.
        budget: `full` takes some minutes on two CPU cores; `small` only shows that everything works.
        prepare: write the data and the converted language model to the cache, and stop.
    """

    out: str = "runs/quickstart"
    budget: Literal["full", "small"] = "full"
    prepare: bool = False


@dataclass(frozen=True)
class _Record:
    """Content of `quickstart.json`: the budget, and the SHA-256 hashes of the run's inputs by name."""

    budget: str
    inputs: dict[str, str] | None = None


def main(argv: list[str]) -> int:
    """Run the quickstart.

    Returns:
        Exit status: 0, 143 after SIGTERM, 130 after Ctrl-C.

    Raises:
        UserError: a package with data or weights is missing, `--out` holds something else, or the inputs have changed.
    """
    options = parse(build_parser("quickstart", QuickstartOptions), QuickstartOptions, argv)
    return run_chain(lambda: _run(options))


def _run(options: QuickstartOptions) -> int:
    console = Console(stderr=True, highlight=False)
    run = Path(options.out)
    rows, steps = BUDGETS[options.budget]
    _claim(run, options.budget)

    console.print("[bold]1/4[/] Data and weights")
    data = prepare()
    from mmtune.models.language import load_tokenizer
    from mmtune.models.saving import read_spec

    load_tokenizer(read_spec(ALIGNED).language)
    if options.prepare:
        return 0
    _check_inputs(run, data)

    console.print("[bold]2/4[/] Scoring the model before tuning: its projector is aligned on captions, no more")
    _evaluate(ALIGNED, run / "before", data, rows)
    console.print(f"[bold]3/4[/] Tuning on text instructions alone ({steps} steps of LoRA)")
    _tune(run, steps)
    console.print("[bold]4/4[/] Scoring the model after tuning")
    _evaluate(str(run), run / "after", data, rows)
    write_report(read_variants([run / "before", run / "after"]), run / "report.html", title="mmtune quickstart")
    _show(run)
    return 0


def _claim(run: Path, budget: str) -> None:
    """Check that the run directory holds a quickstart of this budget; claim an empty one.

    Raises:
        UserError: it holds something else.
    """
    marker = run / RECORD
    if marker.is_file():
        if _record(run).budget != budget:
            raise UserError(f"--out {run}: holds a quickstart of another --budget; choose another folder")
    elif not is_blank(run):
        raise UserError(f"--out {run}: exists and is no quickstart; choose another folder")
    else:
        claim_folder(run, "--out")
        write_json(marker, asdict(_Record(budget)))


def _record(run: Path) -> _Record:
    file = run / RECORD
    return validate(_Record, read_json(file), str(file), extra="ignore", remedy="choose another --out")


def _check_inputs(run: Path, data: Path) -> None:
    """Compare the hashes of the run's inputs with the recorded ones, and record them.

    Finished parts of a run are valid only while its inputs are unchanged.

    Raises:
        UserError: an input has changed since the run began.
    """
    record = _record(run)
    now = inputs_of([str(data / "instructions.jsonl")], ["quickstart"], "quickstart", str(data), ALIGNED)
    now = {name.removeprefix(f"{data}/"): digest for name, digest in now.items()}  # so that the cache can be moved
    if record.inputs is not None and (names := changed(record.inputs, now)):
        raise UserError(f"--out {run}: was begun with other contents of {names}; choose another folder")
    write_json(run / RECORD, asdict(replace(record, inputs=now)))


def _tune(run: Path, steps: int) -> None:
    if (run / "model").is_dir():
        return
    from mmtune.cli.shared.train_end import report
    from mmtune.training.fit import fit
    from mmtune.training.recipes import recipe

    fit(**recipe("quickstart", out=run, max_steps=steps))
    report(run, read_json(run / "data.json"))


def _evaluate(model: str, out: Path, data: Path, rows: int) -> None:
    from mmtune.cli.evaluate import print_scores
    from mmtune.evaluation.run.engine import evaluate

    print_scores(evaluate(model, "quickstart", out=out, data_root=data, limit=rows), out)


def _show(run: Path) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    changes = task_changes(read_results(run / "before"), read_results(run / "after"))
    console.print(change_table(changes, "Zero-shot scores before and after tuning on text instructions alone"))
    console.print(example_table([(c.name, s) for c in changes if c.modality == "vision" for s in _telling(run, c)]))
    for line in cost_lines(read_json(run / "ledger.json")):
        console.print(line)
    console.print(f"\nThe run, its model and all answers: {run}/   The report: {run / 'report.html'}")
    console.print(f"Ask it yourself: mmtune chat --model {shlex.quote(str(run))}")


def _telling(run: Path, change: TaskChange, count: int = 3) -> list[PairedSample]:
    """Return the first samples of a task, at most `count`; they are not selected by their outcome."""
    pairs = paired_samples(run / "before", run / "after", change.name)
    return [pair for pair, _ in zip(pairs, range(count), strict=False)]
