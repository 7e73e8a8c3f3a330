"""Models of two blocks, saved as users have theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


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
        hidden_size=64,
        intermediate_size=96,
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


def save_tower(file: Path) -> None:
    """Weights of timm's test_vit."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(1)
        trunk: Any = timm.create_model("test_vit", pretrained=False)
    torch.save(trunk.state_dict(), file)
