"""The wheel holds everything, and what it installs works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import mmtune

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = run(*(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT), cwd=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = folder.glob("mmtune-*.whl")
    return file


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `mmtune` of a new environment that has the wheel, and sees this environment's libraries."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    inside = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    python = folder / "bin" / "python"
    installed = run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel),
        cwd=folder,
    )
    assert installed.returncode == 0, installed.stdout + installed.stderr
    # searched last, and without its own .pth files, so that the checkout installed there does not count
    (inside / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(python, "-c", "import mmtune; print(mmtune.__file__)", cwd=folder)
    assert Path(where.stdout.strip()).is_relative_to(inside), where.stdout + where.stderr
    return folder / "bin" / "mmtune"


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    sources = {
        "mmtune": ROOT / "mmtune",
        "mmtune/configs": ROOT / "configs",
        "mmtune/eval_suites": ROOT / "eval_suites",
    }
    expected = {
        f"{prefix}/{path.relative_to(folder).as_posix()}"
        for prefix, folder in sources.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected
    assert "mmtune/py.typed" in held
    assert "mmtune/configs/vicuna_7b_lora.yaml" in held
    assert "mmtune/eval_suites/mlan9.yaml" in held
    assert any(name.startswith("mmtune/eval_suites/tasks/") for name in held)
    assert any(name.startswith("mmtune/assets/quickstart/") for name in held)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "usage: mmtune COMMAND"),
        (["--version"], mmtune.__version__),
        (["fit", "--config", "vicuna_7b_lora", "--print_config"], "base: runs/vicuna_7b_align"),
        (["eval", "--suite", "mlan9", "--help"], "--suite"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_installed_command_works_in_any_folder(
    command: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = run(command, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


def test_the_installed_command_finds_what_it_ships(command: Path, tmp_path: Path) -> None:
    code = "from mmtune.common.files import find_resource as find\n"
    code += "print(find('eval_suites', 'mlan9'), find('configs', 'quickstart'))"
    done = run(command.with_name("python"), "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(Path(name).is_relative_to(command.parents[1]) for name in done.stdout.split())
