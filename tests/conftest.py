"""Fixtures for all tests."""

from __future__ import annotations

import gc
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from near_ties import NearTies
from PIL import Image
from tiny_models import save_byte_llama, save_llama, save_tower
from warm_processes import WarmPopen

import mmtune.common.torchvision_ops  # noqa: F401  # before a test imports lightning or transformers
from mmtune.common import masking
from mmtune.common.files import cache_dir

subprocess.Popen = WarmPopen  # type: ignore[misc]  # `subprocess.run` uses it, too
torch.set_num_threads(1)  # the models are tiny; threads that wait for each other cost more than they bring


def pytest_collection_finish() -> None:
    """Leave what imports have made out of every later search for garbage; it stays until the end."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the tests run on a GPU, a real one or one that is pretended."""
    parser.addoption("--card", choices=("pretended", "real"), help="run tests/device, and all others, on a GPU")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, on a GPU, the tests that are about the CPU."""
    for item in items if config.getoption("--card") else []:
        if (marker := item.get_closest_marker("cpu_only")) is not None:
            item.add_marker(pytest.mark.skip(reason=f"on a CPU only: {marker.args[0]}"))


def pytest_configure(config: pytest.Config) -> None:
    """Install the pretended GPU before anything else asks for one."""
    card = config.getoption("--card")
    if card == "pretended":
        from device.card.install import install, missing_tool

        if tool := missing_tool():
            pytest.exit(f"skipped: the pretended GPU is compiled, and there is no {tool}", returncode=0)
        install()
    elif card == "real" and not torch.cuda.is_available():
        pytest.exit("--card real: torch finds no GPU here", returncode=2)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device that tests compute on: the GPU with `--card`, else the CPU."""
    return torch.device("cuda:0" if request.config.getoption("--card") else "cpu")


@pytest.fixture(scope="session", autouse=True)
def peak_is_not_measured(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give the pretended GPU a peak: measuring it takes matrix products that a CPU computes for minutes."""
    if request.config.getoption("--card") != "pretended":
        yield
        return
    from mmtune.training.callbacks import ledger

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "matrix_product_peak", lambda device, dtype: 1e12)
        yield


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own. Converted language models, which take a minute, are those of the user's cache."""
    own = tmp_path_factory.mktemp("cache")
    converted = cache_dir() / "gguf"
    converted.mkdir(parents=True, exist_ok=True)
    (own / "gguf").symlink_to(converted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMTUNE_CACHE", str(own))
        yield own


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """Take Ctrl-C also where a shell runs the tests in the background, and has them and their commands ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_secret_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin each test without the secrets of others, which would be masked in its messages."""
    monkeypatch.setattr(masking, "_known", set())


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real rows and photos that stands beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real rows in ../shared/data")
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two blocks with a token per byte and the ChatML markers, as transformers saves one."""
    folder = tmp_path_factory.mktemp("llama")
    save_byte_llama(folder)
    return folder


@pytest.fixture(scope="session")
def llama_of_64s(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with layers whose sizes blocks of 64 weights divide, as bitsandbytes' 4 bits on a CPU need."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama_of_64s")
    shutil.copytree(llama, folder, dirs_exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig.from_pretrained(llama, intermediate_size=128, initializer_range=0.1)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sentencepiece_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a real sentencepiece model of 32,000 pieces, as Vicuna is published."""
    package = pytest.importorskip("mistral_common", reason="pip install mistral-common brings the tokenizer")
    folder = tmp_path_factory.mktemp("sentencepiece_llama")
    shutil.copy(Path(package.__file__).parent / "data" / "tokenizer.model.v1", folder / "tokenizer.model")
    save_llama(folder, vocab_size=32000, eos_token_id=2)
    return folder


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    """Photos of several sizes, none like another."""
    random = np.random.default_rng(0)
    sizes = [(40, 30), (30, 40), (48, 48), (200, 100), (17, 61), (64, 64)]
    return [Image.fromarray(random.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.fixture(scope="session")
def tower_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of timm's test_vit; a tower of random ones would differ each time it is built."""
    file = tmp_path_factory.mktemp("tower") / "test_vit.pth"
    save_tower(file)
    return file


@pytest.fixture(scope="session")
def near_ties() -> Iterator[NearTies]:
    """Picks of this process that rounding decides."""
    watch = NearTies()
    with watch.watching():
        yield watch


@pytest.fixture(autouse=True)
def no_near_ties(near_ties: NearTies, request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test, or what its fixtures made for it, where rounding decides what is picked: see tests/near_ties.py."""
    yield
    found = near_ties.take()
    if request.config.getoption("--card"):
        return  # models are loaded in bfloat16 there, in which figures tie that differ on the CPU
    if found and not request.node.get_closest_marker("near_ties"):
        pytest.fail(f"{len(found)} pick(s) that rounding decides ({found[0]}); ask something else, or change the seed")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many cases the fuzzing tests tried; here, since it is this conftest that the reporting process has."""
    reports = [report for kind in terminalreporter.stats.values() for report in kind]
    torn_down = [report for report in reports if getattr(report, "when", None) == "teardown"]
    counts = [value for report in torn_down for name, value in report.user_properties if name == "cases"]
    if counts:
        tried, refused = (sum(column) for column in zip(*counts, strict=True))
        terminalreporter.write_line(f"fuzzing: {tried:,} cases, {refused:,} of them refused")
