"""`mmtune reproduce`: the paper's comparison of costs and scores, from one aligned base model."""

from __future__ import annotations

import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from mmtune.cli.shared.flags import build_parser, parse
from mmtune.common.errors import UserError
from mmtune.common.files import write_json
from mmtune.common.signals import run_chain
from mmtune.common.text import visible
from mmtune.experiments.reproduce.presets import BASE, BASELINE, PRESETS, VARIANTS, Preset
from mmtune.experiments.reproduce.steps import Comparison, Step


@dataclass
class ReproduceOptions:
    """Train the variants of the paper's comparison from one aligned model, evaluate them, join cost and scores.

    What is done already is not done again: the same command goes on where it was stopped, and more seeds can be added.

    Attributes:
        preset: tiny (a real small model, on two CPU cores), llama2-7b or vicuna-7b (the recipe's, on GPUs).
        out: the folder for all of it: base/, seed-S/VARIANT/, reproduce.json, report.html, plots/ and tables/.
        budget: rows each variant is trained on; the preset's own where not given. Below that, the preset's alignment
            steps and evaluation rows shrink in proportion.
        seeds: how many times every variant is trained.
        seed: the first of the seeds; the others follow it.
        data_root: the folder with hub/ (evaluation sets in place of the Hugging Face hub) and, for tiny, with text/ and
            visual/.
        base: an aligned model to begin with, in place of making one.
        tune: the config of the variants, say llama2_7b_full; the preset's own where not given.
        limit: evaluation rows of each set, in place of the preset's.
        plan: show what it would take, and stop.
    """

    preset: Literal["tiny", "llama2-7b", "vicuna-7b"]
    out: str
    budget: int | None = None
    seeds: int = 1
    seed: int = 42
    data_root: str | None = None
    base: str | None = None
    tune: str | None = None
    limit: int | None = None
    plan: bool = False

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("--budget", self.budget, 16),
            ("--seeds", self.seeds, 1),
            ("--seed", self.seed, 0),
            ("--limit", self.limit, 1),
        ):
            if value is not None and value < least:
                raise UserError(f"{flag} {value}: must be at least {least}")


class StepFailed(Exception):  # noqa: N818  # converted to its exit status, after the step's own message
    """Error for a step that ended without its result.

    Attributes:
        status: exit status of the step, or 1.
    """

    def __init__(self, status: int) -> None:
        self.status = status


def main(argv: list[str]) -> int:
    """Run the steps that are not done yet, print costs beside scores, and write the report; with `--plan`, only plan.

    Returns:
        Exit status: 0, that of the step that failed, 143 after SIGTERM, or 130 after Ctrl-C.

    Raises:
        UserError: a flag is invalid, data is missing, or the folder holds something else.
    """
    options = parse(build_parser("reproduce", ReproduceOptions), ReproduceOptions, argv)
    comparison = Comparison(
        options.preset,
        _scaled(PRESETS[options.preset], options),
        Path(options.out),
        list(range(options.seed, options.seed + options.seeds)),
        options.data_root,
        options.base,
    )
    comparison.claim()
    return run_chain(lambda: _compare(comparison, plan_alone=options.plan))


def _compare(comparison: Comparison, *, plan_alone: bool) -> int:
    steps = comparison.steps()
    if plan_alone or not all(step.done() for step in steps):
        _console().print(_plan_table(comparison))
    if plan_alone:
        return 0
    try:
        _check(comparison)
        _run(steps)
    except StepFailed as failure:
        print("mmtune: stopped; the same command goes on from here", file=sys.stderr)
        return failure.status
    comparison.write(_seen(comparison))
    _show(comparison)
    return 0


def _scaled(preset: Preset, options: ReproduceOptions) -> Preset:
    """Return the preset with the requested numbers of rows and steps, and the requested config of the variants."""
    samples = options.budget or preset.samples
    share = min(1.0, samples / preset.samples)

    def shrunk(count: int | None) -> int | None:
        return count if count is None else max(1, round(count * share))

    return replace(
        preset,
        samples=samples,
        align_steps=shrunk(preset.align_steps),
        limit=options.limit or shrunk(preset.limit),
        tune=options.tune or preset.tune,
    )


def _plan_table(comparison: Comparison) -> Table:
    """Build a table of the estimates of `mmtune plan` for training each variant once."""
    from mmtune.cli.plan import make_plan

    count = len(comparison.seeds)
    table = Table(
        title=f"Training each variant once ({count} seed{'s' if count > 1 else ''} of each; evaluation comes on top)",
        title_justify="left",
        show_edge=False,
    )
    table.add_column("variant")
    for heading in ("rows", "steps", "text tokens", "image tokens", "TFLOP", "memory"):
        table.add_column(heading, justify="right")
    card = None
    for variant in VARIANTS:
        flags = comparison.tuning(comparison.seeds[0], variant)
        if Path(comparison.base).exists() or comparison.given_base:
            flags += ["--model.base", comparison.base]
        else:  # the base does not exist yet: plan with the parts that its config names
            flags = [*comparison.alignment()[:2], *flags, "--model.base", "null"]
        cli, plan = make_plan([*flags, "--compared=false"])
        here = plan.cards[-1] if cli.trainer_config.accelerator == "cpu" else plan.cards[0]
        if card is None:
            card = here
            table.add_column(f"time, {card.name}", justify="right")
        (work,), (estimate,) = plan.workloads, plan.estimates
        tokens = work.tokens()
        table.add_row(
            variant,
            f"{work.rows:,}",
            f"{work.steps:,}",
            f"{tokens['text']:,}",
            f"{tokens['image']:,}",
            f"{estimate.operations / 1e12:,.1f}",
            f"{plan.memory(here, estimate) / 2**30:.1f} GiB",
            f"{plan.seconds(here, estimate) / 60:,.1f} min",
        )
    return table


def _check(comparison: Comparison) -> None:
    """Search the training rows for evaluation rows, unless that is done; `fit` leaves out those that are found."""
    from mmtune.data.conversation import Conversation
    from mmtune.data.sources.readers import BadRows, read_conversations
    from mmtune.evaluation.contamination.check import check_contamination

    if comparison.check.is_file():
        return

    def rows() -> Iterator[Conversation]:
        for source in comparison.sources():
            yield from read_conversations(source, image_root=comparison.image_root, bad_rows=BadRows("skip"))

    found = check_contamination(rows(), comparison.preset.suite, data_root=comparison.data_root, progress=True)
    left_out = len({(hit.source, hit.row) for hit in found.hits})
    print(
        f"{found.training_rows:,} training rows compared with {comparison.preset.suite}: {left_out:,} left out, "
        f"because a question or photo of theirs is in it ({comparison.check})",
        file=sys.stderr,
    )
    write_json(comparison.check, found.to_dict())


def _run(steps: list[Step]) -> None:
    """Run the steps that are not done, each in a separate process, so that its memory is measured separately.

    Raises:
        StepFailed: a step failed, or ended without its result.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for number, step in enumerate(steps, 1):
        heading = f"[bold]{number}/{len(steps)}[/] {step.title}"
        if step.done():
            console.print(f"{heading}: there already")
            continue
        console.print(heading)
        status = _run_process([sys.executable, "-m", "mmtune.cli.main", *step.arguments])
        if status or not step.done():
            raise StepFailed(status or 1)


def _run_process(command: list[str]) -> int:
    """Run a command in a process, and pass SIGTERM on to it so that it can save its state.

    Returns:
        Its exit status; 128 + N if signal N ended it, and 143 if SIGTERM arrived but it finished with status 0.
    """
    passed_on: list[int] = []
    process = subprocess.Popen(command, stdout=sys.stderr)

    def pass_on(number: int, frame: types.FrameType | None) -> None:
        passed_on.append(number)
        process.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        status = process.wait()
    except KeyboardInterrupt:  # the terminal sends Ctrl-C to the step as well
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if passed_on and status == 0:  # the step had finished already; the next one must not start
        return 128 + signal.SIGTERM
    return 128 - status if status < 0 else status


def _seen(comparison: Comparison) -> dict[str, str]:
    """Return the evaluation sets that overlap with training rows, or were not checked, each with the reason."""
    from mmtune.evaluation.contamination.check import read_set_checks

    runs = [] if comparison.given_base else [(BASE, comparison.out / BASE)]
    runs += [(variant, run) for _, variant, run in comparison.runs()]
    found: dict[str, str] = {}
    for variant, run in runs:
        for task, check in read_set_checks(run).items():
            if check.verdict == "seen":
                found.setdefault(task, f"{check.hit_rows} of its {check.rows} rows are in what {variant} learnt")
            elif check.verdict == "unchecked":
                found.setdefault(task, f"not compared with what {variant} learnt: {check.reason}")
    return found


def _show(comparison: Comparison) -> None:
    """Print costs beside scores, and write the report, plots and tables."""
    from mmtune.analysis.report import write_report
    from mmtune.analysis.study import study
    from mmtune.analysis.tables import study_table
    from mmtune.analysis.variants import read_variants

    variants = read_variants([comparison.out])
    report = comparison.out / "report.html"
    _console().print(study_table(study(variants), BASELINE))
    warnings = write_report(
        variants,
        report,
        title=f"mmtune reproduce --preset {comparison.name}",
        baseline=BASELINE,
        plots=comparison.out / "plots",
        tables=comparison.out / "tables",
    )
    for warning in warnings:
        print(f"mmtune: warning: {visible(warning)}", file=sys.stderr)
    print(f"The report: {report}   Pictures and tables: plots/ and tables/ beside it   All runs: {comparison.out}/")


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)
