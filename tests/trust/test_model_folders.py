"""A model folder names code in every way that transformers knows, and none of it is run; nobody is asked."""

from __future__ import annotations

import ast
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_models import save_gguf

import mmtune
from mmtune.cli.main import main
from mmtune.common.errors import UserError
from mmtune.models import pretrained
from mmtune.models.language import load_config, load_language, load_tokenizer
from mmtune.models.saving import read_spec

SOURCE = Path(mmtune.__file__).parent
LOADERS = {"from_pretrained", "from_config", "load_adapter", "load_custom_generate", "pipeline", "snapshot_download"}
EVIL = "\x1b[2J\x1b]0;owned\x07\u202e"
ACTS = ("\x1b", "\x07", "\u202e", "\x9b")
AUTO = ("AutoConfig", "AutoTokenizer", "AutoModel", "AutoModelForCausalLM", "AutoProcessor", "AutoImageProcessor")
Folder = Callable[..., Path]


def forgetful(source: str) -> list[str]:
    """The calls of a source that load by name, and are not told that they may run no code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            owner, _, name = ast.unparse(node.func).rpartition(".")
            trust = [ast.unparse(k.value) for k in node.keywords if k.arg == "trust_remote_code"]
            if name in LOADERS and owner != "VisionLanguageModel" and trust != ["False"]:
                found.append(ast.unparse(node.func))
    return found


def auto_classes(source: str) -> list[str]:
    """The classes of transformers and peft that load by name, as far as a source imports them."""
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    names = [a.name for node in imports if (node.module or "").startswith(("transformers", "peft")) for a in node.names]
    return [name for name in names if name.startswith("Auto") and name != "AutoConfig"]


def test_every_loader_is_told_not_to_run_code() -> None:
    for file in sorted(SOURCE.rglob("*.py")):
        source, name = file.read_text(encoding="utf-8"), file.relative_to(SOURCE).as_posix()
        assert forgetful(source) == [], name
        assert (auto_classes(source) != []) == (name == "models/pretrained.py"), name


@pytest.mark.parametrize(
    "source",
    ["AutoModel.from_pretrained(name)", "kind.from_pretrained(None, config=config)", "x.from_config(config)",
     "PeftModel.from_pretrained(a, b)", "model.load_adapter(a)", "AutoConfig.from_pretrained(a, trust_remote_code=t)",
     "from transformers import AutoModel", "transformers.pipeline('x')"],
)  # fmt: skip
def test_the_walk_sees_a_loader_that_forgets_it(source: str) -> None:
    assert forgetful(source) or auto_classes(source)


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """What the code of a folder makes, if it runs."""
    return tmp_path / "ran"


@pytest.fixture
def folder(llama: Path, tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Makes a model folder with code in it; who asks on the terminal hears yes."""
    answers = io.StringIO("y\n" * 50)
    answers.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", answers)

    def make(
        config: dict[str, Any] | None = None,
        tokenizer: dict[str, Any] | None = None,
        files: dict[str, Any] | None = None,
        without: str | None = None,
    ) -> Path:
        made = tmp_path / "model"
        shutil.copytree(llama, made)
        for name, more in (("config.json", config), ("tokenizer_config.json", tokenizer)):
            (made / name).write_text(json.dumps(json.loads((made / name).read_text()) | (more or {})))
        code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\nclass Own:\n    pass\n"
        for name, text in {"own.py": code, **(files or {})}.items():
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_text(code if text is ... else text if isinstance(text, str) else json.dumps(text))
        if without is not None:
            (made / without).unlink()
        return made

    return make


def load(reference: Path) -> Any:
    """Everything that is read of a folder."""
    model = mmtune.VisionLanguageModel.from_pretrained(reference, template="chatml")
    model.answer(["a"], max_tokens=2)
    return model


def not_asked(capfd: pytest.CaptureFixture[str]) -> bool:
    return "[y/N]" not in "".join(capfd.readouterr())


GPT = {"vocab.json": {"a": 0, "b": 1}, "merges.txt": "#version: 0.2\na b\n"}


@pytest.mark.parametrize("auto", AUTO)
@pytest.mark.parametrize("reference", ["own.Own", "someone/else--own.Own"])
def test_a_kind_of_its_own_is_refused(
    auto: str, reference: str, folder: Folder, ran: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = folder({"model_type": "own", "auto_map": {auto: reference}}, {"auto_map": {auto: [reference, None]}})
    with pytest.raises(UserError, match=r"auto_map: own needs code of its own, which is not run"):
        load(made)
    assert not ran.exists()
    assert not_asked(capfd)


@pytest.mark.parametrize("auto", AUTO)
def test_a_known_kind_is_computed_by_the_code_of_transformers(
    auto: str, folder: Folder, ran: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ours = {"auto_map": {auto: "own.Own"}}
    made = folder(ours, ours, {"preprocessor_config.json": ours, "processor_config.json": ours})
    model = load(made)
    assert type(model.base_language).__module__.startswith("transformers.models.llama")
    assert not hasattr(model.base_language.config, "auto_map")  # so that nothing that is saved names it
    assert not ran.exists()
    assert not_asked(capfd)


@pytest.mark.parametrize(
    "named", ["OwnTokenizer", "AutoModelForCTC", "AutoProcessor", "AutoTokenizer", "AutoModelForCausalLM", "pipeline"]
)
@pytest.mark.parametrize("where", ["tokenizer", "config"])
def test_a_class_of_tokenizers_is_one(
    named: str, where: str, folder: Folder, ran: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ours = {"auto_map": {named: "own.Own", "AutoTokenizer": ["own.Own", None]}}
    chosen = {"tokenizer_class": named}
    tokenizer = ours | (chosen if where == "tokenizer" else {})
    made = folder(ours | (chosen if where == "config" else {}), tokenizer, GPT, "tokenizer.json")
    with pytest.raises(UserError) as told:
        load_tokenizer(str(made))
    if (named, where) != ("OwnTokenizer", "config"):  # whose files then are no tokenizer
        assert "tokenizer_class: expected a tokenizer of transformers, found " in str(told.value)
    assert not ran.exists()
    assert not_asked(capfd)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_kernels_of_the_hub_are_not_fetched(key: str, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Any] = []
    hub = "integrations.hub_kernels.load_and_register_attn_kernel"
    for place in ("modeling_utils.lazy_import_flash_attention", hub):
        monkeypatch.setattr(f"transformers.{place}", lambda *names, **_: fetched.append(names))
    made = folder({key: "kernels-community/flash-attn", f"{key.replace('attn', 'experts')}": "deepgemm"})
    language = load(made).base_language
    assert fetched == []
    assert language.config._experts_implementation != "deepgemm"


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "mxfp4", "torchao", "own", "\x1b[2J", ["a"], None])
def test_packages_that_a_quantiser_would_need_are_not_imported(method: Any, folder: Folder) -> None:
    made = folder({"quantization_config": {"quant_method": method, "bits": 4}})
    with pytest.raises(UserError, match=r"quantization_config: expected bitsandbytes, found "):
        load(made)


def test_an_adapter_beside_a_language_model_is_refused(folder: Folder) -> None:
    adapter = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": "someone/else"}
    adapter |= {"megatron_config": {"a": 1}, "megatron_core": "megatron_own"}
    made = folder(files={"adapter_config.json": adapter})
    with pytest.raises(UserError, match=r"holds an adapter beside the language model"):
        load(made)


@pytest.mark.parametrize("dtype", ["load", "hub", "Tensor", "float32.x"])
def test_a_dtype_is_one(dtype: str, folder: Folder) -> None:
    with pytest.raises(UserError):
        load_config(str(folder({"dtype": dtype})))


def test_how_to_generate_is_not_for_a_folder_to_say(folder: Folder, ran: Path, llama: Path) -> None:
    wishes = {
        **{"num_beams": 2, "penalty_alpha": 0.6, "top_k": 4, "dola_layers": "low", "min_new_tokens": 6},
        **{"custom_generate": "own", "cache_implementation": "static", "suppress_tokens": list(range(60, 120))},
        **{"compile_config": {"backend": "own"}, "eos_token_id": 258},
    }
    more = {"generation_config.json": wishes, "custom_generate/generate.py": ..., "generate.py": ...}
    wishing, plain = load(folder(files=more)), load(llama)
    assert wishing.answer(["Hello"], max_tokens=8) == plain.answer(["Hello"], max_tokens=8)
    assert wishing.base_language.generation_config.eos_token_id == 258
    assert not ran.exists()


def test_a_gguf_file_is_read_alone(
    folder: Folder, ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Beside it lie settings with code, and an adapter of another model."""
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    ours = {"auto_map": {name: ["own.Own", None] if "Token" in name else "own.Own" for name in AUTO}}
    beside = {"adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": "someone/else"}}
    made = folder(ours, ours | {"tokenizer_class": "OwnTokenizer"}, beside)
    save_gguf(made / "model.gguf")
    loaded = load_language(str(made / "model.gguf"))
    assert len(loaded.get_input_embeddings().weight) == 260
    assert not ran.exists()
    assert not_asked(capfd)


def test_nothing_that_names_code_is_left_in_a_config() -> None:
    from transformers import LlamaConfig, LlavaConfig

    config = LlavaConfig(text_config=LlamaConfig(num_hidden_layers=1))
    for part in (config, config.text_config, config.vision_config):
        part.auto_map, part.fusion_config, part._auto_class = {"AutoModel": "own.Own"}, {"a": {}}, "AutoModel"
        part._attn_implementation = "kernels-community/a"
    pretrained.harmless(config, "x")
    for part in (config, config.text_config, config.vision_config):
        assert part._attn_implementation is None
        assert not {"auto_map", "fusion_config", "_auto_class"} & set(vars(part))
    config.text_config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(UserError, match="found gptq"):
        pretrained.harmless(config, "x")


# The commands


def hostile(folder: Folder) -> Path:
    """A model that works, with code to run and escapes wherever transformers quotes a folder."""
    ours = {"auto_map": {name: ["own.Own", None] if "Token" in name else "own.Own" for name in AUTO}}
    config = {f"{EVIL}_token_id": 10**6, "architectures": [EVIL], EVIL: EVIL, "tokenizer_class": EVIL}
    config |= {"bos_token_id": 10**6, "pad_token_id": -7, "rope_scaling": {"rope_type": "default", EVIL: EVIL}}
    tokenizer = {"tokenizer_class": EVIL, EVIL: EVIL, f"{EVIL}_token": "<|im_end|>"}
    wishes = {EVIL: EVIL, "temperature": 0.5, "num_beams": 1, f"{EVIL}_ids": [1]}
    files = {"generation_config.json": wishes, "custom_generate/generate.py": ...}
    return folder(ours | config, ours | tokenizer, files)


TASK = """{name: t, version: 1, modality: language, dataset: {path: me/t, split: test}, prompt: "{{ q }}",
target: "{{ a }}", answer: short, max_tokens: 2, extract: [first_clause], metrics: [accuracy]}"""


@pytest.fixture
def commands(tmp_path: Path) -> dict[str, list[str]]:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    (tmp_path / "t.yaml").write_text(TASK)
    rows = tmp_path / "data/hub/me/t/default/test.parquet"
    rows.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([{"q": "1?", "a": "red"}]), rows)
    model, out = str(tmp_path / "model"), str(tmp_path / "out")
    training = [f"--model.language={model}", "--model.template=chatml", "--model.lora.r=2"]
    text = f'--data.train.text=["{tmp_path / "rows.jsonl"}"]'
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    suite = [f"--suite={tmp_path / 't.yaml'}", f"--data-root={tmp_path / 'data'}"]
    scores = f"--out={out}-scores"
    return {
        "fit": ["fit", *training, text, *quiet, f"--out={out}"],
        "plan": ["plan", *training, "--rows=10", "--text_tokens=30", "--answer_tokens=8"],
        "eval": ["eval", f"--model={model}", "--template=chatml", *suite, scores, "--device=cpu"],
        "chat": ["chat", f"--model={model}", "--template=chatml", "--device=cpu", "--max-tokens=2"],
        "export": ["export", model, "--template=chatml", "--to=merged", f"--out={out}-merged"],
        "data": ["data", str(tmp_path / "rows.jsonl"), f"--tokenizer={model}", "--template=chatml"],
    }


RUN = """
import json, sys
from mmtune.cli.main import main
for name, argv in json.load(open(sys.argv[1])).items():
    status = main(argv)
    print(f"<{name} {status}>", flush=True)
    print(f"<{name} {status}>", file=sys.stderr, flush=True)
"""


def terminal(commands: dict[str, list[str]], folder: Path) -> str:
    """What stands in a terminal after these commands, with all that libraries say; who asks hears yes."""
    (folder / "commands.json").write_text(json.dumps(commands))
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder / "commands.json")],
        input="y\n" * 50,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"TRANSFORMERS_VERBOSITY": "warning", "PYTHONWARNINGS": "default"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def acting(said: str) -> list[str]:
    """The lines that act on a terminal, or hide."""
    return [line for line in said.split("\n") if any(sign in line for sign in ACTS)]


@pytest.mark.parametrize(
    "names", [("eval", "chat", "export", "data"), pytest.param(("fit", "plan"), marks=pytest.mark.slow)]
)
def test_a_hostile_folder_acts_in_no_command(
    names: tuple[str, ...], folder: Folder, commands: dict[str, list[str]], ran: Path, tmp_path: Path
) -> None:
    hostile(folder)
    said = terminal({name: commands[name] for name in names}, tmp_path)
    assert [name for name in names if f"<{name} 0>" not in said] == [], said
    assert not ran.exists()
    assert "[y/N]" not in said
    assert acting(said) == []


@pytest.mark.parametrize(
    "broken",
    [{"model_type": EVIL}, {"hidden_act": EVIL}, {"dtype": EVIL}, {"use_return_dict": EVIL},
     {"num_hidden_layers": EVIL}, {"layer_types": [EVIL, EVIL]}, {"quantization_config": {"quant_method": EVIL}},
     {"auto_map": EVIL, "model_type": EVIL}],
)  # fmt: skip
def test_a_folder_that_fails_says_so_in_one_line(
    broken: dict[str, Any], folder: Folder, commands: dict[str, list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    folder(broken)
    assert main(commands["plan"]) == 2
    said = "".join(capfd.readouterr())
    assert "mmtune: error: " in said
    assert acting(said) == []


def test_names_of_tensors_do_not_act(
    folder: Folder, commands: dict[str, list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    weights = folder() / "model.safetensors"
    save_file(load_file(weights) | {f"model.layers.0.{EVIL}.weight": torch.zeros(1)}, weights, {"format": "pt"})
    assert main(commands["eval"]) == 2
    said = "".join(capfd.readouterr())
    assert "the config has no place for 1 tensors" in said
    assert acting(said) == []


def test_what_a_saved_model_fetches_is_told_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vision = {"tower": "clip:some/tower", "weights": "some/weights"}
    for parts in (
        {"language": "some/language"},
        {"language": "a--b/..c"},
        {"language": "some/language", "vision": vision},
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "mmtune.json").write_text(json.dumps({"format": 1, "spec": {"template": "chatml", **parts}}))
        for _ in range(2):
            read_spec(str(folder))
        told = [line.partition(" names ")[2].partition(",")[0] for line in capsys.readouterr().err.splitlines()]
        assert told == {"a--b/..c": []}.get(parts["language"], ["some/language"]) + [
            "some/tower", "some/weights"
        ] * ("vision" in parts)  # fmt: skip
        read_spec(str(folder), language="other/language")
        assert not capsys.readouterr().err
