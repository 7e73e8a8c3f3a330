"""`mmtune eval`: score a model zero-shot on a suite of language and vision sets."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from mmtune.cli.options import build_parser, parse
from mmtune.evaluation.engine import evaluate
from mmtune.evaluation.store import Results


@dataclass
class EvaluateOptions:
    """Score a model zero-shot on a suite of language and vision sets.

    Attributes:
        model: a run directory, a saved model, or a language model (folder or hub id).
        suite: a suite that mmtune ships (mlan9, quickstart), a suite file, or a task file.
        out: the folder for results.json and samples/, written after every finished task.
        tasks: only these tasks of the suite, separated by commas.
        limit: only the first so many rows of each task.
        data_root: read DIR/hub/<hub id>/<config>/<split>.parquet in place of the Hugging Face hub.
        batch_tokens: how many tokens are computed at once; does not change the scores.
        seed: of the bootstrap that estimates the standard errors.
        device: auto (the GPU where there is one), cpu, cuda, cuda:1.
        resume: take over tasks that were finished in --out with the same model, task file, protocol and rows.
        protocol: blind never looks at the gold answer to word a question; mlan does what the paper's files
            do. The suite's own where not given.
    """

    model: str
    suite: str
    out: str
    tasks: str | None = None
    limit: int | None = None
    data_root: str | None = None
    batch_tokens: int = 4096
    seed: int = 0
    device: str = "auto"
    resume: bool = True
    protocol: Literal["blind", "mlan"] | None = None


def main(argv: list[str]) -> int:
    """Run the evaluation and print its scores.

    Raises:
        UserError: anything the user can mend, found before the model is loaded where possible.
    """
    options = parse(build_parser("eval", EvaluateOptions), EvaluateOptions, argv)
    names = None
    if options.tasks is not None:
        names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    out = Path(options.out)
    results = evaluate(
        options.model,
        options.suite,
        out=out,
        tasks=names,
        limit=options.limit,
        data_root=options.data_root,
        batch_tokens=options.batch_tokens,
        protocol=options.protocol,
        seed=options.seed,
        device=options.device,
        resume=options.resume,
    )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    console.print(score_table(results))
    console.print(cost_line(results))
    console.print(f"Scores: {out / 'results.json'}   Answers: {out / 'samples'}/", markup=False, soft_wrap=True)
    return 0


def score_table(results: Results) -> Table:
    """The scores as a table, in per cent."""
    table = Table(title=f"{results.model} on {results.suite}", title_justify="left")
    table.add_column("task")
    table.add_column("kind")
    for heading in ("rows", "score %", "± s.e.", "unparsed %", "seconds"):
        table.add_column(heading, justify="right")
    for name, task in results.tasks.items():
        shares = (task.score, task.stderr, task.unparsed)
        table.add_row(name, task.modality, str(task.n), *(f"{100 * s:.1f}" for s in shares), f"{task.seconds:.0f}")
    table.add_section()
    for name, average in results.averages.items():
        if average is not None:
            table.add_row(f"average, {name}", "", "", f"{100 * average:.1f}")
    return table


def cost_line(results: Results) -> str:
    """What the scores took to compute."""
    cost = results.cost
    return (
        f"{cost['seconds']:.0f} s, {cost['prompt_tokens']:,.0f} prompt tokens "
        f"({cost['reused_tokens']:,.0f} reused), "
        f"{cost['generated_tokens']:,.0f} generated, {cost['tower_passes']:,.0f} photos through the tower"
    )
