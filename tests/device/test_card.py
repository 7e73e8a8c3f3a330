"""The device itself: what is refused, and what FlashAttention computes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

from device.card.waits import Waits
from mmtune.models.decoding.sampler import log_probabilities

LENGTHS = (5, 1, 9)
Counting = Callable[[Waits], AbstractContextManager[Any]]


@pytest.fixture
def only_pretended(pretended: bool) -> None:
    if not pretended:
        pytest.skip("asks for functions of the pretended GPU")


def test_tensors_of_two_devices_are_not_mixed(device: torch.device) -> None:
    here, there = torch.ones(3), torch.ones(3, device=device)
    with pytest.raises(RuntimeError, match="on the same device"):
        there + here
    with pytest.raises(RuntimeError, match="on the same device"):
        torch.nn.functional.linear(there[None], here[None])
    assert (there + torch.tensor(1.0)).tolist() == [2.0] * 3  # a number of the host is taken


def test_random_numbers_are_not_those_of_the_cpu(device: torch.device) -> None:
    devices = (device, torch.device("cpu"), device)
    drawn = [torch.randn(4, generator=torch.Generator(d).manual_seed(0), device=d).cpu() for d in devices]
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
        torch.randn(4, generator=torch.Generator().manual_seed(0), device=device)


def test_memory_is_counted(device: torch.device) -> None:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    held = torch.empty(2**20, device=device)
    assert torch.cuda.memory_allocated() == before + 4 * 2**20
    del held
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() == before + 4 * 2**20


def test_memory_is_limited(device: torch.device, memory_left: Callable[[int], None]) -> None:
    memory_left(2**25)
    assert len(torch.empty(2**24, dtype=torch.uint8, device=device)) == 2**24
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2**27, dtype=torch.uint8, device=device)


def test_page_locked_memory_is_known(device: torch.device) -> None:
    plain = torch.arange(6.0)
    assert not plain.is_pinned()
    assert plain.pin_memory().is_pinned()
    assert plain.pin_memory()[2:].is_pinned()
    assert torch.equal(plain.pin_memory().to(device, non_blocking=True).cpu(), plain)


WAITING: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda t: t[0].item(),
    "tolist": lambda t: t.tolist(),
    "nonzero": lambda t: t.nonzero(),
    "boolean index": lambda t: t[t > 1],
    "to the host": lambda t: t.cpu(),
    "from pageable memory": lambda t: torch.ones(3).to(t.device),
    "numbers": lambda t: torch.tensor([1.0, 2.0], device=t.device),
}
NOT_WAITING: dict[str, Callable[[torch.Tensor], object]] = {
    "arithmetic": lambda t: (t * 2).sum(),
    "from page-locked memory": lambda t: torch.ones(3).pin_memory().to(t.device, non_blocking=True),
    "index on the device": lambda t: t[torch.arange(2, device=t.device)],
}


@pytest.mark.parametrize("call", WAITING.values(), ids=WAITING)
def test_waits_are_counted(device: torch.device, waits: Counting, call: Callable[[torch.Tensor], object]) -> None:
    given, found = torch.arange(3.0, device=device), Waits()
    with waits(found):
        call(given)
    assert found.total == 1, str(found)


@pytest.mark.parametrize("call", NOT_WAITING.values(), ids=NOT_WAITING)
def test_other_calls_are_not(device: torch.device, waits: Counting, call: Callable[[torch.Tensor], object]) -> None:
    given, found = torch.arange(3.0, device=device), Waits()
    with waits(found):
        call(given)
    assert not found.total, str(found)


def test_a_wait_names_its_line(device: torch.device, waits: Counting) -> None:
    logits, found = torch.randn(2, 9, device=device), Waits()
    with waits(found):
        log_probabilities(logits, [1, 2])
    assert found.total == 1
    assert " models/decoding/sampler.py:" in str(found)


def sequences(device: torch.device, dtype: torch.dtype = torch.bfloat16, width: int = 16) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values [tokens, heads, width] of several documents, and their ends."""
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    made = (torch.randn(total, heads, width, generator=generator) for heads in (4, 2, 2))
    ends = torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return *(one.to(device, dtype) for one in made), ends.to(device)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, window: int | None = None
) -> torch.Tensor:
    left, longest = -1 if window is None else window - 1, max(LENGTHS)
    out = varlen_attn(query, key, value, ends, ends, longest, longest, window_size=(left, 0), enable_gqa=True)
    assert isinstance(out, torch.Tensor)
    return out


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_flash_attention_is_attention(device: torch.device, dtype: torch.dtype, window: int | None) -> None:
    """Compare the output and the gradients with those of the CPU in float32, one document at a time."""
    query, key, value, ends = sequences(device, dtype)
    given = [t.requires_grad_() for t in (query, key, value)]
    here = [t.detach().cpu().float().requires_grad_() for t in given]
    out = attend(query, key, value, ends, window)
    documents = []
    for q, k, v in zip(*(t.split(LENGTHS) for t in here), strict=True):
        seen = torch.ones(len(q), len(q), dtype=torch.bool).tril()
        if window is not None:
            seen = seen.triu(1 - window)
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        documents.append(F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True).transpose(0, 1))
    wanted = torch.cat(documents)
    torch.testing.assert_close(out.float().cpu(), wanted, rtol=0.02, atol=0.02)
    wanted.square().sum().backward()
    out.float().square().sum().backward()
    for there, own in zip(given, here, strict=True):
        assert there.grad is not None
        torch.testing.assert_close(there.grad.float().cpu(), own.grad, rtol=0.05, atol=0.1)


REFUSED = {
    "float32": {"dtype": torch.float32},
    "a head of 264": {"width": 264},
    "ends in int64": {"ends": torch.int64},
    "ends of the host": {"ends": "host"},
}


@pytest.mark.parametrize("asked", REFUSED.values(), ids=REFUSED)
def test_flash_attention_refuses(device: torch.device, asked: dict[str, object]) -> None:
    changed = {k: v for k, v in asked.items() if k != "ends"}
    query, key, value, ends = sequences(device, **changed)  # type: ignore[arg-type]
    if asked.get("ends") == "host":
        ends = ends.cpu()
    elif "ends" in asked:
        ends = ends.long()
    with pytest.raises((RuntimeError, ValueError)):
        attend(query, key, value, ends)


@pytest.mark.usefixtures("only_pretended")
@pytest.mark.parametrize("change", ["width", "longest", "strided"])
def test_the_pretended_kernel_refuses_more(device: torch.device, change: str) -> None:
    """Refuse what the real kernel reads wrongly without an error, or what PyTorch pads for it."""
    query, key, value, ends = sequences(device, width=12 if change == "width" else 16)
    longest = max(LENGTHS) - (change == "longest")
    if change == "strided":
        ends = ends.repeat_interleave(2)[::2]
    with pytest.raises(RuntimeError):
        torch.ops.aten._flash_attention_forward(
            query, key, value, ends, ends, longest, longest, 0.0, True, False, scale=None
        )
