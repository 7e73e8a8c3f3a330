"""What the parity tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llava_builders import write_llava


@pytest.fixture(scope="session")
def llava_hf(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a small `llava-hf` folder; see `write_llava`."""

    def write(*args: Any, **options: Any) -> Path:
        folder = tmp_path_factory.mktemp("llava_hf")
        write_llava(folder, llama, *args, **options)
        return folder

    return write
