"""Damaged GGUF files: converted, or refused by name; a file that is refused leaves nothing in the cache."""

from __future__ import annotations

import json
import random
import struct
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
from fuzz_cases import Cases, numbered
from mutations import damaged

from mmtune.common.errors import UserError
from mmtune.models.language import load_config, load_tokenizer


@pytest.fixture(scope="module")
def whole(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A Llama of one block, with the tokenizer of the tests' own."""
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    vocabulary = json.loads((llama / "tokenizer.json").read_text())
    names = {number: token for token, number in vocabulary["model"]["vocab"].items()}
    names |= {token["id"]: token["content"] for token in vocabulary["added_tokens"]}
    tokens = [*(names[number] for number in sorted(names)), "ab"]
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    shapes = {"token_embd": (len(tokens), 32), "output": (len(tokens), 32), "output_norm": (32,)}
    inner = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32), "ffn_gate": (48, 32),
             "ffn_up": (48, 32), "ffn_down": (32, 48), "attn_norm": (32,), "ffn_norm": (32,)}  # fmt: skip
    for name, shape in (shapes | {f"blk.0.{name}": shape for name, shape in inner.items()}).items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file.read_bytes()


def converted(file: Path) -> None:
    load_config(str(file))
    load_tokenizer(str(file))


def structure_damaged(data: bytes, random: random.Random) -> bytes:
    """The file with one of its counts or lengths changed: of tensors, of keys, of a text or of a list."""
    content = bytearray(data)
    lengths = [at for at in range(8, 4000) if content[at + 1 : at + 8] == bytes(7) and 0 < content[at] < 60]
    at = random.choice([8, 16, *lengths])
    content[at : at + 8] = struct.pack("<Q", random.choice((0, 1, 2**16, 2**31, 2**40, 2**63, 2**64 - 1)))
    return bytes(content)


@numbered(40, 1500)
def test_damaged_gguf_files(
    numbers: range, cases: Cases, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "tiny.gguf"
    file.write_bytes(whole)
    assert cases.run("whole", partial(converted, file)) is None
    for number in numbers:
        random_ = random.Random(f"gguf {number}")
        file.write_bytes(
            structure_damaged(whole, random_) if number % 2 else damaged(whole[:9000], random_) + whole[9000:]
        )
        outcome = cases.run(f"gguf {number}", partial(converted, file), names=[file])
        left = [path for path in (tmp_path / "cache" / "gguf").iterdir() if path.is_dir()]
        if isinstance(outcome, UserError) and any(not (path / "config.json").is_file() for path in left):
            cases.fault("something half converted is left", f"gguf {number}", str(left))
