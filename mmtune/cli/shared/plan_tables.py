"""A plan in tables, and as JSON."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmtune.training.plan import Card, Estimate, Schedule, Workload

LANGUAGE, VISUAL = "100 % language", "100 % visual"
COMPARED = {LANGUAGE: False, VISUAL: True}


@dataclass(frozen=True)
class Plan:
    """All that `mmtune plan` found.

    Attributes:
        method: the one that the config takes.
        estimates: of every method on every workload.
        workloads: the rows as configured where they are of both kinds, and as many of one kind.
        schedule: how they are gone through.
        dtype: of the matrix products.
        cards: to plan for; the last is this machine's CPU.
        libraries: bytes that a process takes before it computes anything.
        notes: what was assumed.
    """

    method: str
    estimates: list[Estimate]
    workloads: list[Workload]
    schedule: Schedule
    dtype: torch.dtype
    cards: list[Card]
    libraries: int
    notes: list[str]

    def memory(self, card: Card, estimate: Estimate) -> int:
        """Bytes on one such card, or of the whole process on the CPU."""
        return self.libraries + estimate.cpu.peak if self.is_cpu(card) else estimate.gpu.peak

    def seconds(self, card: Card, estimate: Estimate) -> float:
        """On the devices that were asked for, or on the one CPU."""
        return estimate.seconds(card, self.dtype, 1 if self.is_cpu(card) else self.schedule.devices)

    def is_cpu(self, card: Card) -> bool:
        """Whether it is this machine's CPU."""
        return card is self.cards[-1]

    def saving(self, method: str) -> float:
        """How many times the operations of 100 % language those of 100 % visual are."""
        total = {e.workload: e.operations for e in self.estimates if e.method == method}
        return total[VISUAL] / total[LANGUAGE] if total[LANGUAGE] else float("inf")

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "method": self.method,
            "devices": self.schedule.devices,
            "work": [
                {
                    "rows": w.name,
                    "count": w.rows,
                    "packs": len(w.packs),
                    "steps": w.steps,
                    "tokens": w.tokens(),
                }
                for w in self.workloads
            ],
            "estimates": [
                {
                    "method": e.method,
                    "rows": e.workload,
                    "params": {"trainable": e.trainable, "total": e.total},
                    "flops": dataclasses.asdict(e.flops),
                    "memory_bytes": {
                        "gpu": {**dataclasses.asdict(e.gpu), "peak": e.gpu.peak},
                        "cpu": {
                            **dataclasses.asdict(e.cpu),
                            "libraries": self.libraries,
                            "peak": self.libraries + e.cpu.peak,
                        },
                    },
                    "cards": {
                        card.name: {
                            "seconds": self.seconds(card, e),
                            "memory_bytes": self.memory(card, e),
                            "fits": self.memory(card, e) <= card.memory,
                        }
                        for card in self.cards
                    },
                }
                for e in self.estimates
            ],
            "visual_over_language": {e.method: self.saving(e.method) for e in self.estimates},
            "assumed": {
                "share_of_peak": {card.name: card.used for card in self.cards},
                "peak_flops": {card.name: card.peak[self.dtype] for card in self.cards},
                "notes": self.notes,
            },
        }


def print_plan(plan: Plan, console: Console) -> None:
    """Print the tables; whole, into a pipe too."""
    with console.capture() as captured:  # rich itself would exit with 1 when the reader has seen enough
        for table in (_work(plan), _parameters(plan), _operations(plan), _memory(plan), _cards(plan)):
            console.print(table)
            console.print()
        for method in dict.fromkeys(e.method for e in plan.estimates):
            console.print(
                f"{method}: {VISUAL} takes {plan.saving(method):.2f} times the operations, and the time, of {LANGUAGE}."
            )
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
