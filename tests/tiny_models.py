"""Models of two blocks, saved as users have theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

_HIDDEN, _INNER, _KEYS = 64, 96, 32  # sizes of the layers


def save_byte_llama(folder: Path) -> None:
    """A Llama with a token per byte and the ChatML markers, as transformers saves one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    save_llama(folder, vocab_size=len(tokenizer.get_vocab()), eos_token_id=258)


def save_llama(folder: Path, *, vocab_size: int, eos_token_id: int) -> None:
    """Random weights, without a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=_HIDDEN,
        intermediate_size=_INNER,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.2,  # far from uniform, so that what is said depends on what is seen
        bos_token_id=None if vocab_size < 1000 else 1,
        eos_token_id=eos_token_id,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)


def save_gguf(file: Path) -> None:
    """A Llama of two blocks with a token per byte, in llama.cpp's format."""
    import gguf
    from tokenizers import pre_tokenizers

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    writer, random = gguf.GGUFWriter(str(file), "llama"), np.random.default_rng(0)
    writer.add_context_length(4096)
    writer.add_embedding_length(_HIDDEN)
    writer.add_block_count(2)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(_HIDDEN // 4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * 3)
    writer.add_token_merges(["h e"])  # transformers wants at least one
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(259)
    shapes = {"token_embd": (len(tokens), _HIDDEN), "output": (len(tokens), _HIDDEN)}
    for block in range(2):
        shapes |= {f"blk.{block}.attn_{name}": (_HIDDEN, _HIDDEN) for name in ("q", "output")}
        shapes |= {f"blk.{block}.attn_{name}": (_KEYS, _HIDDEN) for name in ("k", "v")}
        shapes |= {f"blk.{block}.ffn_{name}": (_INNER, _HIDDEN) for name in ("gate", "up")}
        shapes[f"blk.{block}.ffn_down"] = (_HIDDEN, _INNER)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (0.2 * random.standard_normal(shape)).astype(np.float32))
    for name in ("output_norm", *(f"blk.{block}.{part}_norm" for block in range(2) for part in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", np.ones(_HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_tower(file: Path) -> None:
    """Weights of timm's test_vit."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(1)
        trunk: Any = timm.create_model("test_vit", pretrained=False)
    torch.save(trunk.state_dict(), file)
