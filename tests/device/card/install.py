"""Installation of a pretended CUDA device on a CPU build of torch, for the rest of the process.

Tensors are plain `torch.Tensor` whose device is cuda:0, so that `Module.to`, autograd, autocast, GradScaler, the
optimizers and Lightning's CUDAAccelerator are the real ones. What it cannot show: numerics of real kernels, streams and
their order, speed, NCCL.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import importlib
import os
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import torch

from device.card.waits import CountedCalls
from mmtune.common.files import cache_dir

_SOURCE = Path(__file__).with_name("backend.cpp")
_FLAGS = ["-O0", "-g0", "-Wno-attributes"]


def missing_tool() -> str | None:
    """Return the name of a tool that building the backend needs and that is not here, or None."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where pip puts ninja
    return next((tool for tool in ("g++", "ninja") if shutil.which(tool) is None), None)


def install(capability: tuple[int, int] = (9, 0), memory: int = 80 * 2**30) -> None:
    """Give this process a device cuda:0.

    Args:
        capability: compute capability that the device reports.
        memory: bytes that it reports; `torch.ops.pretended.limit_memory` sets what it has.
    """
    if torch.backends.cuda.is_built():
        raise RuntimeError("there is a CUDA build of torch; run with --card real")
    # these ask for functions of CUDA when they are first imported, once there is a device
    for name in ("torch._dynamo.device_interface", "torch._inductor.standalone_compile"):
        importlib.import_module(name)
    # this registers kernels of its own for CUDA once there is a device; without them, those of the CPU are used
    with contextlib.suppress(ImportError):
        importlib.import_module("bitsandbytes")
    torch._dynamo.config.disable = True  # a compiler for a GPU has none to compile for
    _build()
    properties = types.SimpleNamespace(
        major=capability[0], minor=capability[1], name="Pretended GPU", total_memory=memory, multi_processor_count=132,
        warp_size=32, gcnArchName="", is_integrated=False, uuid="0", L2_cache_size=50 * 2**20,
        regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048,
    )  # fmt: skip
    _replace(torch.cuda, _device(properties))
    _replace(torch._C, _internals())
    for name in ("max_memory_allocated", "memory_allocated", "reset_peak_memory_stats", "mem_get_info", "memory_stats",
                 "memory_stats_as_nested_dict", "empty_cache", "memory_reserved"):  # fmt: skip
        setattr(torch.cuda.memory, name, getattr(torch.cuda, name))
    torch.version.cuda = "0.pretended"
    torch.accelerator.synchronize = lambda device=None, /: _note("torch.accelerator.synchronize")  # type: ignore[assignment]
    torch.UntypedStorage.clone = _clone_storage  # type: ignore[method-assign, assignment]
    _count_literals()

    from device.card.flash import register_flash

    register_flash()


def _build() -> None:
    """Compile the backend, once for each state of its source and version of torch."""
    from torch.utils.cpp_extension import load

    digest = hashlib.sha256(f"{torch.__version__} {sys.version} {_FLAGS}".encode())
    for file in (_SOURCE, _SOURCE.with_name("memory.h")):
        digest.update(file.read_bytes())
    folder = cache_dir() / "pretended_card" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    load(
        name="pretended_cuda", sources=[str(_SOURCE)], extra_cflags=_FLAGS, build_directory=str(folder),
        is_python_module=False,
    )  # fmt: skip


def _device(properties: Any) -> dict[str, Any]:
    """Return the functions and values of `torch.cuda`."""
    memory = properties.total_memory
    return {
        "_initialized": True,
        "_is_compiled": lambda: True,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": _set_device,
        "get_device_properties": lambda device=None: properties,
        "get_device_name": lambda device=None: properties.name,
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
        "is_bf16_supported": lambda including_emulation=True: properties.major >= 8,
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "synchronize": lambda device=None: _note("torch.cuda.synchronize"),
        "_exchange_device": lambda index: 0,
        "_maybe_exchange_device": lambda index: 0,
        "max_memory_allocated": lambda device=None: torch.ops.pretended.peak_memory(False),
        "memory_allocated": lambda device=None: torch.ops.pretended.live_memory(),
        "memory_reserved": lambda device=None: torch.ops.pretended.live_memory(),
        "max_memory_reserved": lambda device=None: torch.ops.pretended.peak_memory(False),
        "reset_peak_memory_stats": lambda device=None: torch.ops.pretended.peak_memory(True) and None,
        "mem_get_info": lambda device=None: (memory - torch.ops.pretended.live_memory(), memory),
        "memory_stats": lambda device=None: collections.OrderedDict(),
        "memory_stats_as_nested_dict": lambda device=None: {},
        "default_generators": (torch.Generator("cuda:0"),),
        "current_stream": lambda device=None: _Stream(),
        "default_stream": lambda device=None: _Stream(),
        "stream": lambda stream: contextlib.nullcontext(),
        "Stream": _Stream,
        "Event": _Event,
    }


def _internals() -> dict[str, Any]:
    """Return the functions of `torch._C` that a CPU build lacks."""
    return {
        "_cuda_memoryStats": lambda device: {},
        "_cuda_getDevice": lambda: 0,
        "_cuda_getDeviceCount": lambda: 1,
        "_cuda_setDevice": lambda index: None,
        "_cuda_getArchFlags": lambda: "sm_90",
        "_cuda_getCurrentRawStream": lambda index: 0,
        "_cuda_isInBadFork": lambda: False,
    }


def _replace(owner: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(owner, name, value)


def _set_device(device: Any) -> None:
    index = device if isinstance(device, int) else torch.device(device).index or 0
    if index:
        raise RuntimeError("CUDA error: invalid device ordinal")


def _note(what: str) -> None:
    if CountedCalls.current is not None:
        CountedCalls.current.note(what)


_plain_clone = torch.UntypedStorage.clone


def _clone_storage(self: torch.UntypedStorage) -> Any:
    """Copy a storage; a CPU build of torch makes none on a device from Python, as `copy.deepcopy` asks for."""
    if self.device.type != "cuda":
        return _plain_clone(self)
    return torch.empty(self.nbytes(), dtype=torch.uint8, device="cuda:0").untyped_storage().copy_(self)


def _count_literals() -> None:
    """Count the copies by which torch.tensor and others bring numbers to the device, unseen by dispatch modes."""
    torch.utils._device._device_constructors()  # `with torch.device(...)` is to know the original of torch.tensor
    for owner, name, place in ((torch, "tensor", 0), (torch.Tensor, "new_tensor", 1), (torch, "as_tensor", 0)):
        original = getattr(owner, name)

        def counted(
            *args: Any, _original: Any = original, _name: str = name, _place: int = place, **kwargs: Any
        ) -> Any:
            out = _original(*args, **kwargs)
            given = args[_place] if len(args) > _place else kwargs.get("data")
            if out.is_cuda and not isinstance(given, torch.Tensor):
                _note(f"{_name}: numbers, host to device")
            return out

        setattr(owner, name, counted)


class _Stream:
    cuda_stream, device, stream_id, device_index, device_type = 0, torch.device("cuda:0"), 0, 0, 1

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def wait_stream(self, other: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...
    def synchronize(self) -> None:
        _note("Stream.synchronize")

    def record_event(self, event: Any = None) -> Any:
        return _Event()

    def query(self) -> bool:
        return True


class _Event:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def record(self, *args: Any) -> None: ...
    def wait(self, *args: Any) -> None: ...
    def synchronize(self) -> None:
        _note("Event.synchronize")
