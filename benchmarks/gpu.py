"""A GPU: attention in a pack, steps of generation, and a compiled training pass, on weights drawn at random.

    python benchmarks/gpu.py attention|generation|compiled

Needs a CUDA build of torch; `--small` runs the last two on tiny shapes, to try the script anywhere.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import mmtune.common.torchvision_ops  # noqa: I001, F401  # before transformers

import torch
import torch.nn.functional as F
from tiny_models import save_byte_llama
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import sdpa_mask

from mmtune.evaluation.run.load_model import load_model
from mmtune.models.adapters import add_adapters
from mmtune.models.spec import LoraOptions

SHAPE = {  # of TinyLlama, 1.1B parameters
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
    "num_key_value_heads": 4,
}  # fmt: skip
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def seconds(run: Callable[[], Any], times: int = 8) -> float:
    """Return the median time of a function, after one call that is not counted."""
    found = []
    for _ in range(times + 1):
        start = time.perf_counter()
        run()
        torch.accelerator.synchronize() if DEVICE == "cuda" else None
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def documents(tokens: int, mean: int) -> list[int]:
    """Return lengths of documents that make up a pack."""
    generator, lengths = torch.Generator().manual_seed(0), list[int]()
    while left := tokens - sum(lengths):
        lengths.append(min(left, int(torch.randint(mean // 2, mean * 3 // 2, (1,), generator=generator))))
    return lengths


def attention() -> None:
    """Time four ways to compute a layer's attention over a pack, forward and backward.

    There are 32 heads of width 128, with 8 of keys.
    """
    compiled = torch.compile(flex_attention, dynamic=False)
    for dtype, tokens, mean in (
        (torch.bfloat16, 4096, 128),
        (torch.bfloat16, 16384, 256),
        (torch.bfloat16, 16384, 2048),
        (torch.float32, 4096, 128),
    ):
        lengths = documents(tokens, mean)
        q, k, v = (torch.randn(1, h, tokens, 128, device=DEVICE, dtype=dtype, requires_grad=True) for h in (32, 8, 8))
        of = torch.repeat_interleave(torch.tensor(lengths)).to(DEVICE)
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(DEVICE)
        mask = (of[:, None] == of[None]).tril()[None, None]
        blocks = create_block_mask(_seen(of), None, None, tokens, tokens, device=DEVICE)

        def wide(t: torch.Tensor) -> torch.Tensor:
            return t.repeat_interleave(4, 1)

        def apart(q=q, k=k, v=v, lengths=lengths) -> torch.Tensor:  # type: ignore[no-untyped-def]
            parts = zip(*(t.split(lengths, 2) for t in (q, wide(k), wide(v))), strict=True)
            with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
                return torch.cat([F.scaled_dot_product_attention(*part, is_causal=True) for part in parts], 2)

        longest = max(lengths)

        def flash(q=q, k=k, v=v, ends=ends, longest=longest) -> torch.Tensor:  # type: ignore[no-untyped-def]
            flat = (t[0].transpose(0, 1).contiguous() for t in (q, wide(k), wide(v)))
            return varlen_attn(*flat, ends, ends, longest, longest, window_size=(-1, 0)).transpose(0, 1)[None]

        def masked(q=q, k=k, v=v, mask=mask) -> torch.Tensor:  # type: ignore[no-untyped-def]
            return F.scaled_dot_product_attention(q, wide(k), wide(v), attn_mask=mask)

        def flex(q=q, k=k, v=v, blocks=blocks) -> torch.Tensor:  # type: ignore[no-untyped-def]
            return compiled(q, k, v, block_mask=blocks, enable_gqa=True)

        for way in (flash, apart, masked, flex):
            if way is flash and dtype == torch.float32:
                continue
            gradient = torch.randn_like(q)
            took = seconds(lambda w=way, g=gradient: torch.autograd.grad(w(), (q, k, v), g))  # noqa: B023
            print(f"{str(dtype)[6:]} {tokens} tokens, {len(lengths)} documents, {way.__name__}: {1000 * took:.2f} ms")


def _seen(of: torch.Tensor) -> Any:
    return lambda b, h, query, key: (of[query] == of[key]) & (query >= key)


def save_model(folder: Path, shape: dict[str, int]) -> None:
    """Save a Llama with random weights in bfloat16, and a tokenizer of bytes."""
    save_byte_llama(folder)
    config = LlamaConfig(vocab_size=32000, max_position_embeddings=32768, eos_token_id=258, bos_token_id=None, **shape)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder)


def generation(shape: dict[str, int], *, tokens: int = 128) -> None:
    """Time greedy answers, with steps of decoding computed one by one and replayed from CUDA graphs."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), shape)
        model: Any = load_model(folder, DEVICE, template="chatml")
        prompts = [f"Question {n}: " + "alpha beta gamma " * (n % 20 + 3) for n in range(64)]
        model.answer(prompts[:4], max_tokens=tokens)
        for allowed in (False, True):
            model.graphs.allowed = allowed
            for count in (64, 8, 1):
                before, start = model.usage["generated_tokens"], time.perf_counter()
                model.answer(prompts[:count], max_tokens=tokens)
                rate = (model.usage["generated_tokens"] - before) / (time.perf_counter() - start)
                print(f"graphs {allowed}, {count} prompts: {rate:.0f} tokens/s")


def compiled(shape: dict[str, int], *, tokens: int = 8192) -> None:
    """Time a pass of LoRA (rank 16) through a pack, forward and backward, with the blocks compiled or not."""

    def attend(
        module: Any, q: Any, k: Any, v: Any, mask: Any, *, ends: Any = None, scaling: Any = None, **_: Any
    ) -> Any:
        q, k, v = (t.to(v.dtype)[0].transpose(0, 1).contiguous() for t in (q, k, v))
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        return varlen_attn(q, k, v, ends, ends, 2048, 2048, scale=scaling, window_size=(-1, 0))[None], None

    AttentionInterface.register("pack", attend)
    AttentionMaskInterface.register("pack", sdpa_mask)
    with torch.device(DEVICE):
        language = LlamaForCausalLM(LlamaConfig(vocab_size=32000, **shape)).bfloat16()
    language.requires_grad_(False)
    language.config._attn_implementation = "pack"
    body = add_adapters(language, LoraOptions(r=16, alpha=32, dropout=0.0)).get_base_model().model
    for parameter in body.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    lengths = documents(tokens, 500)
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(DEVICE)
    places = torch.cat([torch.arange(n) for n in lengths])[None].to(DEVICE)
    embeddings = torch.randn(1, tokens, shape["hidden_size"], device=DEVICE, dtype=torch.bfloat16)
    none = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=DEVICE)

    def step() -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            out = body(
                inputs_embeds=embeddings, attention_mask=none, position_ids=places, ends=ends, use_cache=False
            ).last_hidden_state
        out.float().pow(2).mean().backward()

    for way in ("as it is", "compiled"):
        if way == "compiled":
            for block in body.layers:
                block.compile(dynamic=False)
        torch.cuda.reset_peak_memory_stats()
        took = seconds(step)
        print(f"{way}: {tokens / took:.0f} tokens/s, {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("attention", "generation", "compiled"))
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    shape = SMALL if options.small else SHAPE
    {"attention": attention, "generation": lambda: generation(shape), "compiled": lambda: compiled(shape)}[
        options.part
    ]()


if __name__ == "__main__":
    main()
