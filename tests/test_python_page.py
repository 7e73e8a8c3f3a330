"""The code of docs/python.md runs, block after block."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_runs(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == text.count("```python") >= 4
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(shared_data)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert (tmp_path / "runs/counting/ledger.json").is_file()
    assert (tmp_path / "runs/worth/unseen.json").is_file()
    assert any((tmp_path / "exported").iterdir())
