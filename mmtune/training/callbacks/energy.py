"""Energy consumption of the machine, as codecarbon measures or estimates it."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
from typing import Any


class EnergyMeter:
    """Meter of the energy since the start, in kWh; NaN if codecarbon is not installed or reads nothing.

    It reads the meters of processor, memory and GPUs if the machine has them, and otherwise estimates energy from the
    load. Nothing is sent anywhere, written to files, or printed.
    """

    def __init__(self) -> None:
        self._reading = _Reading()
        self._tracker: Any = None

    def start(self) -> None:
        """Start the measurement, in a thread that reads every 15 seconds."""
        if importlib.util.find_spec("codecarbon") is None:
            return
        codecarbon = importlib.import_module("codecarbon")
        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
        self._tracker = codecarbon.OfflineEmissionsTracker(
            country_iso_code="USA",  # emissions depend on it, energy does not
            save_to_file=False,
            save_to_api=False,
            save_to_logger=False,
            save_to_prometheus=False,
            output_handlers=[self._reading],
            allow_multiple_runs=True,
            log_level="critical",
        )
        self._tracker.start()

    def read(self) -> float:
        """Return the energy consumed so far, in kWh."""
        if self._tracker is not None:
            self._tracker.flush()
        return self._reading.kwh

    def stop(self) -> None:
        """Stop the measurement and its thread."""
        if self._tracker is not None:
            self._tracker.stop()
            self._tracker = None


class _Reading:
    """Output handler of codecarbon that keeps the latest reading."""

    def __init__(self) -> None:
        self.kwh = math.nan

    def out(self, total: Any, delta: Any) -> None:
        self.kwh = float(total.energy_consumed)

    def live_out(self, total: Any, delta: Any) -> None:
        pass

    def task_out(self, data: Any, experiment_name: str) -> None:
        pass

    def exit(self) -> None:
        pass
