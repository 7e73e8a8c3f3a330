"""What the tests of `mmtune chat` share: a tiny model that sees, saved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_client import EVIL

from mmtune.generation.chat import Chat
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.spec import ModelSpec, VisionOptions


@pytest.fixture(scope="session")
def saved(llama: Path, tower_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights: it answers with any bytes, and goes on until it may not."""
    tower = VisionOptions("timm:test_vit", str(tower_weights), grid=2)
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    VisionLanguageModel.assemble(ModelSpec(str(llama), tower, template="chatml")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(saved: Path) -> VisionLanguageModel:
    return VisionLanguageModel.from_pretrained(saved)


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let the chat say hostile things, in pieces, and more the longer it is heard."""
    state: dict[str, Any] = {"pieces": [EVIL[:9], EVIL[9:]], "said": 0, "closed": 0, "together": 0, "most": 0}

    def say(self: Chat, text: str, images: Any = (), **_: Any) -> Iterator[str]:
        state["together"] += 1
        state["most"] = max(state["most"], state["together"])
        try:
            for piece in state["pieces"]:
                state["said"] += 1
                yield piece
                time.sleep(0.01)
        finally:
            state["together"] -= 1
            state["closed"] += 1

    monkeypatch.setattr(Chat, "say", say)
    return state
