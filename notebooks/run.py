"""Execute the notebooks in place, and keep of their outputs what a reader wants. `make notebooks` does this.

Usage: python notebooks/run.py [NOTEBOOK…]
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
_CURSOR = re.compile(r"\x1b\[\?25[hl]")  # shown or hidden
_UP, _ERASE = "\x1b[1A\x1b[2K", "\x1b[2K"
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))


def execute(notebook: Path, folder: Path, parameters: dict[str, Any] | None = None) -> nbformat.NotebookNode:
    """Run all cells and return the notebook with its outputs.

    Args:
        notebook: the file.
        folder: where it runs; it writes below `folder/runs`.
        parameters: values in place of those of the cell tagged `parameters`.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    book = nbformat.read(notebook, as_version=4)
    (settings,) = (cell for cell in book.cells if "parameters" in cell.metadata.get("tags", []))
    written = settings.source
    settings.source += "".join(f"\n{name} = {value!r}" for name, value in (parameters or {}).items())
    # `!mmtune` is the one beside this Python, in an activated environment or not
    commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # figures go into the notebook whatever draws elsewhere: the kernel keeps an MPLBACKEND that is there
    inline = "module://matplotlib_inline.backend_inline"
    environment = os.environ | {"PATH": commands, "COLUMNS": "120", "MPLBACKEND": inline}
    with tempfile.TemporaryDirectory() as sockets:
        # files in place of ports, which others on the machine could read
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")
        resources = {"metadata": {"path": str(folder)}}
        client = NotebookClient(
            book, km=kernel, timeout=600, resources=resources, record_timing=False, coalesce_streams=True
        )
        client.execute(env=environment)
    settings.source = written
    return book


def clean(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leave out what differs from one machine to the next: progress on stderr, counts of outputs, versions."""
    book.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in book.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = _as_shown(output.text)
            elif {"image/png", "text/html"} & set(output.get("data", {})):
                output.data.pop("text/plain", None)
            if "text/html" in output.get("data", {}):  # pandas draws the ids of its tables at random
                output.data["text/html"] = re.sub(r"T_[0-9a-f]{5}", f"T_{cell.id}", output.data["text/html"])
    return book


def _as_shown(text: str) -> str:
    """What a terminal has in the end, where progress bars have moved up a line and erased themselves."""
    lines: list[str] = []
    for line in _CURSOR.sub("", text.replace("\r\n", "\n")).split("\n"):
        while (line := line.lstrip("\r")).startswith(_UP):
            line = line.removeprefix(_UP)
            lines = lines[:-1]
        lines.append(line.rpartition("\r")[2].removeprefix(_ERASE).rstrip())
    return "\n".join(lines)


def main(names: list[str]) -> None:
    """Execute the notebooks named, or all."""
    for notebook in [Path(name) for name in names] or NOTEBOOKS:
        began = time.perf_counter()
        book = clean(execute(notebook, HERE))
        nbformat.write(book, notebook)
        print(f"{notebook.name}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
