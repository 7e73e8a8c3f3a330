"""Damaged caches: what was kept of tokens and of photos' features is made again, never taken for something else."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz_cases import Cases, numbered
from mutations import damaged
from transformers import PreTrainedTokenizerFast

from mmtune.data.conversation import Conversation
from mmtune.data.encoding import ModelInputs, tokenise
from mmtune.data.rendering.templates import TEMPLATES
from mmtune.data.token_store import TokenCache, cached_tokens
from mmtune.interfaces import Turn
from mmtune.models.features import FeatureStore
from mmtune.models.spec import VisionOptions
from mmtune.models.vision import build_tower

TALK = [
    Conversation((Turn("user", f"What is {n}?"), Turn("assistant", f"It is {n}." * (n + 1))), (), "rows", n + 1)
    for n in range(30)
]


@numbered(60, 1500)
def test_damaged_tokens_are_made_again(
    numbers: range, cases: Cases, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    inputs = ModelInputs(PreTrainedTokenizerFast.from_pretrained(llama), TEMPLATES["chatml"])
    fresh = [tokenise(conversation, inputs) for conversation in TALK]
    with cached_tokens(inputs) as tokens:
        for conversation in TALK:
            tokens(conversation)
    [folder] = (tmp_path / "cache" / "tokens").iterdir()
    [file] = folder.glob("*.arrow")
    content = file.read_bytes()
    for number in numbers:
        random_ = random.Random(f"tokens {number}")
        data = damaged(content, random_)
        file.write_bytes(data)

        def read() -> bool:
            cache = TokenCache(inputs)
            found = [cache.tokens(conversation) for conversation in TALK]
            return all(
                np.array_equal(a, b)
                for one, two in zip(found, fresh, strict=True)
                for a, b in zip(one, two, strict=True)
            )

        if cases.run(f"tokens {number}", read) is False:
            cases.fault("other tokens than were written", f"tokens {number}", "")


@numbered(60, 1500)
def test_damaged_features(
    numbers: range, cases: Cases, tower_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    store = FeatureStore(build_tower(VisionOptions("timm:test_vit", str(tower_weights), grid=2)))
    photos = {f"photo {n}".encode(): bytes([n]) * 32 for n in range(9)}
    features = {digest: torch.full(store.row_shape, float(n)) for n, digest in enumerate(photos.values())}
    store.add(features)
    shutil.copytree(store.folder, tmp_path / "whole")
    for number in numbers:
        random_ = random.Random(f"features {number}")
        file = store.folder / random_.choice(["photos.bin", "features.bin"])
        content = file.read_bytes()
        file.write_bytes(content[: random_.randrange(len(content))] if number % 2 else damaged(content, random_))

        def read() -> bool:
            store.add(features)
            reader = store.reader(photos)
            return all(torch.equal(reader(photo), features[digest]) for photo, digest in photos.items())

        if cases.run(f"features {number}: {file.name}", read) is False and number % 2:
            cases.fault("what was cut off was read", f"features {number}: {file.name}", "")
        shutil.copytree(tmp_path / "whole", store.folder, dirs_exist_ok=True)
