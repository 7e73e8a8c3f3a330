"""Tiny models of transformers' own classes, of families with experts and with transposed linear layers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

_COMMON = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 258,
    "pad_token_id": None,
}
_OF_FOUR = {"num_experts": 4, "num_experts_per_tok": 2}
_LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 24}
_ROUTED |= {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**_OF_FOUR, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    "qwen3_moe": {**_OF_FOUR, "moe_intermediate_size": 24, "head_dim": 8},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "deepseek_v2": {**_ROUTED, **_LATENT, "num_key_value_heads": 4},
    "deepseek_v3": {**_ROUTED, **_LATENT, "num_key_value_heads": 4},
    "olmoe": _OF_FOUR,
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoeshared": {"num_local_experts": 4, "num_experts_per_tok": 3, "shared_intermediate_size": 40},
    "llama4_text": {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 40, "head_dim": 8},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "head_dim": 8},
    "glm4_moe": {**_ROUTED, "head_dim": 8},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_layer_start_index": 0},
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
}
OTHERS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt_neox": {},
    "phi": {},
    "gemma2": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8},
    "granite": {"embedding_multiplier": 12.0},
    "opt": {},
}

HYBRIDS: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 4},
    "rwkv": {"attention_hidden_size": 64},
    "jamba": {
        "num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8, "use_mamba_kernels": False,
    },
    "zamba2": {
        "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3],
        "num_mem_blocks": 1, "mamba_d_state": 8, "mamba_headdim": 16, "mamba_ngroups": 1, "n_mamba_heads": 8,
    },
}  # fmt: skip


def save_hybrid(family: str, folder: Path, llama: Path, **options: Any) -> Path:
    """Save a model with layers of states, whose sizes 64 divides, with the tokenizer of the byte-level Llama."""
    sizes = {**_COMMON, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 320, "initializer_range": 0.1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **{**sizes, **HYBRIDS.get(family, {}), **options})
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    for file in llama.glob("*token*"):
        shutil.copy(file, folder)
    return folder


def tiny(family: str) -> Any:
    """A model of two blocks with random weights, which compute their experts one by one."""
    options = {**_COMMON, **EXPERTS.get(family, OTHERS.get(family, {}))}
    known = AutoConfig.for_model(family)
    config = type(known)(**{name: value for name, value in options.items() if hasattr(known, name)})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    if family in EXPERTS and model.config._experts_implementation is not None:
        model.config._experts_implementation = "eager"
    return model


def save(family: str, folder: Path, llama: Path) -> Path:
    """Save it with the tokenizer of the byte-level Llama."""
    model = tiny(family)
    with torch.no_grad():
        for parameter in model.parameters():  # experts begin with zeros, in some families
            if parameter.dim() == 3:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)
    for file in llama.glob("*token*"):
        shutil.copy(file, folder)
    return folder
