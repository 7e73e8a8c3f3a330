"""Output of a plan as tables."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmtune.training.plan import LANGUAGE, VISUAL, Plan


def print_plan(plan: Plan) -> None:
    """Print the tables of a plan, complete also when stdout is a pipe."""
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:  # rich itself would exit with 1 if the reader of a pipe closes it early
        for table in (_work(plan), _parameters(plan), _operations(plan), _memory(plan), _cards(plan)):
            console.print(table)
            console.print()
        for method, times in (savings := plan.savings()).items():
            console.print(f"{method}: {VISUAL} takes {times:.2f} times the operations, and the time, of {LANGUAGE}.")
        if savings:
            console.print()
        for note in [*plan.notes, *_assumptions(plan)]:
            console.print(f"- {note}")
    sys.stdout.write(captured.get())


def _assumptions(plan: Plan) -> list[str]:
    *gpus, cpu = plan.cards
    dtype = str(plan.dtype).removeprefix("torch.")
    return [
        f"Time is operations over {gpus[0].used:.0%} of a GPU's published dense {dtype} peak, and {cpu.used:.0%} of "
        f"this CPU's, measured now: {cpu.peak[plan.dtype] / 1e9:.0f} GFLOP/s. Loading and saving are not in it.",
        "Memory is an estimate of what tensors take at the worst moment of the longest pack's step. A GPU's own "
        "context and an allocator's gaps come on top; the CPU's figure includes "
        f"{_bytes(plan.libraries)} for the libraries. On Linux the gaps may be half as much again; with "
        "MALLOC_MMAP_THRESHOLD_=1048576 in the environment there are few.",
    ]


def _work(plan: Plan) -> Table:
    table = _table("Work", "rows", "count", "text tokens", "image tokens", "learnt tokens", "packs", "steps")
    for work in plan.workloads:
        tokens = work.tokens()
        numbers = (work.rows, tokens["text"], tokens["image"], tokens["supervised"], len(work.packs), work.steps)
        table.add_row(work.name, *(f"{n:,}" for n in numbers))
    return table


def _parameters(plan: Plan) -> Table:
    table = _table("Parameters", "method", "trainable", "total", "share")
    own = {e.method: e for e in reversed(plan.estimates)}
    for method, e in reversed(own.items()):
        chosen = " (configured)" if method == plan.method else ""
        table.add_row(method + chosen, f"{e.trainable:,}", f"{e.total:,}", f"{e.trainable / e.total:.2%}")
    return table


def _operations(plan: Plan) -> Table:
    table = _table("Operations", "method", "rows", "language", "projector", "tower", "all")
    for e in plan.estimates:
        parts = (e.flops.language, e.flops.projector, e.flops.tower, e.operations)
        table.add_row(e.method, e.workload, *map(_flops, parts))
    return table


def _memory(plan: Plan) -> Table:
    devices = plan.schedule.devices
    where = "the GPU" if devices == 1 else f"each of {devices} GPUs"
    table = _table(
        f"Memory on {where}", "method", "rows", "frozen", "trained, optimizer", "activations, gradients", "peak"
    )
    for e in plan.estimates:
        table.add_row(e.method, e.workload, *map(_bytes, (e.gpu.frozen, e.gpu.trained, e.gpu.working, e.gpu.peak)))
    return table


def _cards(plan: Plan) -> Table:
    devices = plan.schedule.devices
    names = [work.name for work in plan.workloads]
    table = _table(
        "Time and memory", "device", "method", *(f"{name}: {what}" for name in names for what in ("time", "memory"))
    )
    for card in plan.cards:
        count = "" if plan.is_cpu(card) or devices == 1 else f"{devices} x "
        for method in dict.fromkeys(e.method for e in plan.estimates):
            cells: list[str | Text] = []
            for e in (e for e in plan.estimates if e.method == method):
                memory = plan.memory(card, e)
                fits = memory <= card.memory
                cells.append(_time(plan.seconds(card, e)))
                cells.append(_bytes(memory) if fits else Text(f"{_bytes(memory)}, too much", style="red"))
            table.add_row(count + card.name, method, *cells)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("rows", "method", "device") else "right", overflow="fold")
    return table


def _bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _flops(count: float) -> str:
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e6:.3g} MFLOP" if count else "0"


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
