"""Tables for spreadsheets and for LaTeX hold any text as text."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from evaluations import write_evaluation
from hypothesis import given
from hypothesis import strategies as st

from mmtune.analysis.exports import csv_text, latex, write_tables
from mmtune.analysis.study import study
from mmtune.analysis.variants import Variant, read_variants
from mmtune.common.text import visible

Texts = st.text(st.characters(exclude_categories=[]), max_size=40)
SPECIAL = {"\\", "{", "}", "$", "&", "#", "%", "_", "~", "^"}
ESCAPED = re.compile(
    r"\\text(?:backslash|asciitilde|asciicircum|less|greater|bar|quotedbl|asciigrave|quotesingle)\{\}"
    r"|\\[{}$&#%_]|\{[-\[\]]\}"
)


@given(Texts)
def test_nothing_in_latex_is_a_command(text: str) -> None:
    written = latex(text)
    assert not SPECIAL & set(ESCAPED.sub("", written))
    assert "\n" not in written


@given(st.text(st.characters(categories=["L", "N"])))
def test_latex_leaves_words_alone(text: str) -> None:
    assert latex(text) == text


@given(st.lists(st.lists(st.one_of(Texts, st.floats(allow_nan=False), st.integers()), min_size=2), min_size=1))
def test_csv_reads_back(rows: list[list[str | float | int]]) -> None:
    found = list(csv.reader(io.StringIO(csv_text(rows), newline="")))
    assert len(found) == len(rows)
    for cells, read in zip(rows, found, strict=True):
        for cell, back in zip(cells, read, strict=True):
            if isinstance(cell, str):
                assert back.removeprefix("'") == visible(cell).removeprefix("'")
                assert not back.lstrip().startswith(("=", "+", "-", "@"))
            else:
                assert type(cell)(back) == cell


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path: Path) -> None:
    variants = read_variants([write_evaluation(tmp_path / "e", {"a_b & 5 % #$^~\\{}<>|\"'`[x] -- 'y'": [1, 0]})])
    write_tables(study([Variant("\\input{x} [*]", variants[0].runs)]), tmp_path, None)
    body = r"\input{scores.tex}\input{costs.tex}"
    source = (
        rf"\documentclass{{article}}\usepackage[T1]{{fontenc}}\usepackage{{booktabs,textcomp}}\begin{{document}}{body}"
    )
    (tmp_path / "t.tex").write_text(source + r"\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout[-800:]
