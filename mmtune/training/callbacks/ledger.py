"""Cost ledger of a run: time, tokens, operations, memory and energy, in `ledger.json`."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from mmtune.common.files import write_json
from mmtune.data.collate import PackedBatch
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.cost.flops import FlopsCounter, count_parameters, matrix_product_peak
from mmtune.training.callbacks.energy import EnergyMeter
from mmtune.training.callbacks.skipped_steps import skipped_steps
from mmtune.training.distributed import of_every_process, process_number
from mmtune.training.module import InstructionTuning

_TIMES = ("wall_s", "train_s")
_LIBRARIES = ("mmtune", "torch", "transformers", "peft", "lightning", "open_clip_torch", "timm", "datasets")


class Ledger(pl.Callback):
    """Count what a run computes, and write the counts to `ledger.json`; a resumed run continues its counts.

    Times are seconds of this and all earlier parts of the run; tokens, samples, operations and energy are summed over
    processes; memory is the largest of any process. The peak that utilisation refers to is that of the last part,
    summed over processes.
    """

    def __init__(self, run: Path) -> None:
        self.file = run / "ledger.json"
        self.counts: dict[str, float] = dict.fromkeys(
            (
                "wall_s",
                "train_s",
                "samples",
                "text",
                "image",
                "supervised",
                "language",
                "projector",
                "tower",
                "photos",
                "flops_in_steps",
                "energy_kwh",
            ),
            0,
        )
        self._peak = 0.0
        self._energy, self._energy_here = EnergyMeter(), False
        self._flops: FlopsCounter | None = None
        self._begun = self._step_begun = time.perf_counter()
        self._tower_before = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the timer and the energy meter."""
        self._begun = time.perf_counter()
        self._tower_before = _images_encoded(pl_module)
        self._energy_here = trainer.local_rank == 0  # one process of a machine measures all of its energy
        if self._energy_here:
            self._energy.start()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the shapes for counting operations, and count the images whose features were computed to be stored.

        Also measure the peak of the device, while nothing else runs on it.
        """
        assert isinstance(pl_module, InstructionTuning)
        assert pl_module.model is not None
        self._flops = FlopsCounter(pl_module.model)
        encoded = _images_encoded(pl_module) - self._tower_before
        self.counts["photos"] += encoded
        self.counts["tower"] += self._flops.step(documents=[], supervised=0, image_tokens=0, images=encoded).tower
        self._peak = device_peak(pl_module.device, _product_dtype(trainer, pl_module.model))
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the timer of the batch."""
        self._step_begun = time.perf_counter()
        self._tower_before = _images_encoded(pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: PackedBatch,
        batch_idx: int,
    ) -> None:
        """Add the time, tokens and operations of the batch to the counts."""
        assert self._flops is not None
        assert isinstance(pl_module, InstructionTuning)
        tokens, image = len(batch.input_ids), batch.image_tokens
        images = _images_encoded(pl_module) - self._tower_before
        supervised = batch.supervised_tokens
        flops = self._flops.step(
            documents=batch.document_lengths,
            supervised=supervised,
            image_tokens=image,
            images=images,
            head_twice=pl_module.objective.computes_logits_twice(supervised),
        )
        for name, amount in {
            "train_s": time.perf_counter() - self._step_begun,
            "samples": len(batch.where),
            "text": tokens - image,
            "image": image,
            "supervised": supervised,
            "language": flops.language,
            "projector": flops.projector,
            "tower": flops.tower,
            "photos": images,
            "flops_in_steps": flops.language + flops.projector + flops.tower,
        }.items():
            self.counts[name] += amount

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write `ledger.json`, and stop the energy meter."""
        entries = self._entries(trainer, pl_module)
        self._energy.stop()
        if trainer.is_global_zero:
            write_json(self.file, entries)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop the energy meter's thread; otherwise the process would wait for it."""
        self._energy.stop()

    def state_dict(self) -> dict[str, Any]:
        """Return the counts of every process so far, for the checkpoint."""
        return {"processes": of_every_process({**self.counts, "wall_s": self._wall(), "energy_kwh": self._kwh()})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts of a checkpoint.

        The first process takes over the counts of all processes, because there may be fewer of them now.
        """
        processes = state_dict["processes"]
        for name in self.counts:
            if name in _TIMES:
                self.counts[name] = processes[0][name]
            elif process_number() == 0:
                self.counts[name] = sum(counts[name] for counts in processes)

    def _wall(self) -> float:
        return self.counts["wall_s"] + time.perf_counter() - self._begun

    def _kwh(self) -> float:
        """Return the energy of this and all earlier parts, in kWh; NaN if one of them was not measured."""
        return self.counts["energy_kwh"] + (self._energy.read() if self._energy_here else 0)

    def _entries(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        device = pl_module.device
        on_cuda = device.type == "cuda"

        def reduced(value: float, how: str) -> float:
            # Apple's GPUs have no float64; runs on them have a single process
            tensor = torch.tensor(float(value), dtype=torch.float64, device="cpu" if device.type == "mps" else device)
            return float(trainer.strategy.reduce(tensor, reduce_op=how))

        def total(name: str) -> int:
            return int(reduced(self.counts[name], "sum"))

        def per_second(amount: float) -> float:
            return round(amount / self.counts["train_s"], 1) if self.counts["train_s"] else 0.0

        peak, energy = reduced(self._peak, "sum"), reduced(self._kwh(), "sum")
        assert isinstance(pl_module, InstructionTuning)
        trained, parameters = count_parameters(pl_module)
        return {
            "wall_s": round(self._wall(), 3),
            "train_s": round(self.counts["train_s"], 3),
            "steps": trainer.global_step,
            "skipped_steps": skipped_steps(trainer),
            "samples": total("samples"),
            "tokens": {
                "text": total("text"),
                "image": total("image"),
                "pad": 0,
                "supervised": total("supervised"),
            },
            "tokens_per_s": {"text": per_second(total("text")), "image": per_second(total("image"))},
            "flops": {name: total(name) for name in ("language", "projector", "tower")},
            "peak_flops_per_s": round(peak),
            "model_flop_utilisation": round(per_second(total("flops_in_steps")) / peak, 4),
            "tower_passes": total("photos"),
            "peak_memory_bytes": {
                "host": int(reduced(peak_host_memory(), "max")),
                "device": int(reduced(torch.cuda.max_memory_allocated(device), "max")) if on_cuda else None,
            },
            "energy_kwh": None if math.isnan(energy) else energy,
            "objective": pl_module.objective.name,
            "documents": pl_module.fitness.way,
            "params": {"trainable": trained, "total": parameters},
            "hardware": hardware(device, trainer.world_size),
            "versions": versions(),
        }


@functools.cache
def device_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the peak of a device for matrix products of a type, in operations per second.

    It is measured once in a process, because the measurement takes half a second and the peak does not change.
    """
    return matrix_product_peak(device, dtype)


def _product_dtype(trainer: pl.Trainer, model: VisionLanguageModel) -> torch.dtype:
    """Return the type of most matrix products: that of mixed precision, else that of most weights."""
    for start, dtype in (("bf16", torch.bfloat16), ("16", torch.float16)):
        if str(trainer.precision).startswith(start):
            return dtype
    sizes: dict[torch.dtype, int] = {}
    for parameter in model.language.parameters():
        if parameter.is_floating_point():  # quantised weights are not, and are computed in the type of the others
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    return max(sizes, key=lambda dtype: sizes[dtype])


def hardware(device: torch.device, processes: int) -> dict[str, Any]:
    """Return the hardware of the run; all of its processes must call this."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": of_every_process(torch.cuda.get_device_name(device)) if device.type == "cuda" else [],
        "processes": processes,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and the libraries that a result depends on."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = "not installed"
    return found


def _images_encoded(pl_module: pl.LightningModule) -> int:
    assert isinstance(pl_module, InstructionTuning)
    tower = pl_module.model.tower if pl_module.model else None
    return tower.images_encoded if tower else 0


def peak_host_memory() -> int:
    """Return the peak resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's figure includes the process that started this one
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(peak.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
