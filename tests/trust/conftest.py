"""What the tests of trust share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def flags(llama: Path, tmp_path: Path) -> list[str]:
    """Of `mmtune fit` on a tiny model and two rows."""
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 2)
    rows = f'--data.train.text=["{tmp_path / "a.jsonl"}"]'
    flags = [f"--model.language={llama}", "--model.template=chatml", "--model.lora.r=2", f"--out={tmp_path / 'run'}"]
    return [*flags, rows, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
