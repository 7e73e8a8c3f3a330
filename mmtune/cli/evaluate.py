"""`mmtune eval`: zero-shot evaluation of a model on a suite of language and vision sets."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmtune.cli.shared.flags import build_parser, parse
from mmtune.common.text import visible
from mmtune.evaluation.run.engine import evaluate
from mmtune.evaluation.run.load_model import BATCH_TOKENS
from mmtune.evaluation.run.results import Results
from mmtune.evaluation.run.workers import PeerError, join


@dataclass
class EvaluateOptions:
    """Score a model zero-shot on a suite of language and vision sets.

    Attributes:
        model: a run directory, a saved model, or a language model (folder or hub id).
        suite: a suite that mmtune ships (mlan9, local9, quickstart), a suite file, or a task file.
        out: the folder for answers.sqlite, which keeps answers as they come in, and for results.json and samples/,
            written after every finished task.
        language: the language model that adapters or a projector belong to, in place of the one that they name (which
            may be a path on another machine).
        template: the template that renders conversations (vicuna_v1, llama_2, chatml, tokenizer), in place of the
            recorded one. Folders of the released LLaVA code record none: vicuna_v1 is used.
        template_date: the date (2026-01-31) that the template writes in place of today's date: by default the date
            recorded with the model, else the day on which the evaluation in --out began.
        tasks: only these tasks of the suite, separated by commas.
        limit: only the first so many rows of each task.
        data_root: read DIR/hub/<hub id>/<config>/<split>.parquet in place of the Hugging Face hub.
        batch_tokens: how many tokens are held in memory at once, fewer where it runs out; does not change the scores.
        seed: seed of the bootstrap that estimates the standard errors.
        device: auto (the GPU where there is one; under torchrun each process its own), cpu, cuda, cuda:1.
        resume: reuse the answers in --out of the same model, task files, protocol and rows; if not, generate all again.
        protocol: blind never looks at the gold answer to word a question; mlan does what the paper's files
            do. The suite's own where not given.
        answering: generate an answer and extract it, or compare how likely the choices are, by their summed
            log-probability (likelihood) or by that per character (likelihood_norm). The tasks' own where not given.
        thinking_budget: let the model think before it answers, at most so many tokens (for example 4096), and score the
            text after </think>; 0 answers at once, the default of tasks unless their file says otherwise. For models
            whose template supports it, as Qwen3's.
        past_window: for rows whose prompt leaves no room in the context window of the model: refuse the evaluation
            before it starts, or shorten them by the beginning of what the user says.
        share_prefixes: compute the common prefix of prompts only once; does not change the scores.
        strict: stop at the first photo that cannot be decoded, instead of counting its question as wrong.
        trust_metric_code: run the Python code of metrics that a task file takes from `evaluate` (a hub id or a local
            file), with your rights. Without it such a task file is refused.
    """

    model: str
    suite: str
    out: str
    language: str | None = None
    template: str | None = None
    template_date: str | None = None
    tasks: str | None = None
    limit: int | None = None
    data_root: str | None = None
    batch_tokens: int = BATCH_TOKENS
    seed: int = 0
    device: str = "auto"
    resume: bool = True
    protocol: Literal["blind", "mlan"] | None = None
    answering: Literal["generate", "likelihood", "likelihood_norm"] | None = None
    thinking_budget: int | None = None
    past_window: Literal["refuse", "shorten"] = "refuse"
    share_prefixes: bool = True
    strict: bool = False
    trust_metric_code: bool = False


def main(argv: list[str]) -> int:
    """Run the evaluation and print its scores; of several processes under torchrun, only the first prints.

    Returns:
        Exit status: 0; 2 in the processes that end because another one failed.

    Raises:
        UserError: any error that the user can fix, found before the model is loaded where possible.
    """
    workers = join()
    try:
        with workers.failing_together():
            options = parse(build_parser("eval", EvaluateOptions), EvaluateOptions, argv)
        results = _evaluate(options)
    except PeerError:
        return 2
    if workers.first:
        print_scores(results, Path(options.out))
    return 0


def _evaluate(options: EvaluateOptions) -> Results:
    names = None
    if options.tasks is not None:
        names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    return evaluate(
        options.model,
        options.suite,
        language=options.language,
        template=options.template,
        template_date=options.template_date,
        out=options.out,
        tasks=names,
        limit=options.limit,
        data_root=options.data_root,
        batch_tokens=options.batch_tokens,
        protocol=options.protocol,
        answering=options.answering,
        thinking_budget=options.thinking_budget,
        past_window=options.past_window,
        share_prefixes=options.share_prefixes,
        seed=options.seed,
        device=options.device,
        resume=options.resume,
        strict=options.strict,
        trust_metric_code=options.trust_metric_code,
    )


def print_scores(results: Results, out: Path) -> None:
    """Print the scores, their cost, and the paths of the results and the answers."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    console.print(score_table(results))
    console.print(cost_line(results))
    told = visible(f"Scores: {out / 'results.json'}   Answers: {out / 'samples'}/")
    console.print(told, markup=False, soft_wrap=True)


def score_table(results: Results) -> Table:
    """Format the scores as a table, in percent."""
    table = Table(title=Text(visible(f"{results.model} on {results.suite}")), title_justify="left")
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
    """Format the cost of the evaluation: seconds, tokens, and images through the vision tower."""
    cost = results.cost
    return (
        f"{cost['seconds']:.0f} s, {cost['prompt_tokens']:,.0f} prompt tokens "
        f"({cost['reused_tokens']:,.0f} reused), "
        f"{cost['generated_tokens']:,.0f} generated, {cost['tower_passes']:,.0f} photos through the tower"
    )
