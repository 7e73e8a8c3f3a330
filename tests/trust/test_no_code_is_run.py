"""Data, configs, checkpoints, model folders and task files are read, never run."""

from __future__ import annotations

import ast
import http.server
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_lines import parse_training
from transformers import AutoTokenizer

import mmtune
from mmtune.cli.main import main
from mmtune.common.errors import UserError
from mmtune.data.conversation import Conversation
from mmtune.data.images import EncodedImage
from mmtune.data.rendering.templates import tokenizer_template
from mmtune.evaluation.tasks.render import Renderer
from mmtune.evaluation.tasks.task import Task, load_task
from mmtune.interfaces import Turn
from mmtune.training.checkpoint_io import WholeCheckpoints

SOURCE = Path(mmtune.__file__).parent
# what runs code, or reads a form that can hold code
RUNS = {"eval", "exec", "compile", "__import__", "system", "popen", "unsafe_load", "full_load", "load_all"}
SAFE_ONLY = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "runpy", "code"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call by the dotted name that is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def objections(source: str) -> list[str]:
    """What a source does that runs code from outside, or could."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"imports {m}" for m in modules if m.partition(".")[0] in SAFE_ONLY]
    for name, call in calls(tree):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        last = name.rpartition(".")[2]
        if name in RUNS or (last in RUNS and name.partition(".")[0] in ("os", "yaml", "builtins")):
            found.append(f"calls {name}")
        if name == "torch.load" and ast.unparse(given.get("weights_only", ast.Constant(None))) != "True":
            found.append("torch.load without weights_only=True")
        if "trust_remote_code" in given and ast.unparse(given["trust_remote_code"]) != "False":
            found.append("trust_remote_code")
        if "allow_pickle" in given and ast.unparse(given["allow_pickle"]) != "False":
            found.append("allow_pickle")
        if "shell" in given:
            found.append("a shell")
    return found


def test_the_source_has_nothing_that_runs_what_it_reads() -> None:
    allowed = {
        # the class of exceptions, to tell a pickle that torch refuses
        "models/interop/weights.py": ["imports pickle"],
    }
    for file in sorted(SOURCE.rglob("*.py")):
        name = file.relative_to(SOURCE).as_posix()
        assert objections(file.read_text(encoding="utf-8")) == allowed.get(name, []), name


@pytest.mark.parametrize(
    "source",
    ["eval(text)", "exec(text)", "import pickle", "from dill import loads", "torch.load(file)", "os.system(text)",
     "torch.load(file, weights_only=False)", "yaml.unsafe_load(text)", "run(text, shell=True)",
     "AutoModel.from_pretrained(name, trust_remote_code=True)", "np.load(file, allow_pickle=True)"],
)  # fmt: skip
def test_the_walk_through_the_source_sees(source: str) -> None:
    assert objections(source)


# Configs


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that a config may name; whether it ran is seen by `ran`."""
    name = f"of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
        "from lightning.pytorch.callbacks import Callback\n"
        "class Own(Callback):\n    pass\ndef function(*_):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


CONFIGS = {
    "a callback": "trainer: {callbacks: [{class_path: NAME.Own}]}",
    "a callback by its name alone": "trainer: {callbacks: NAME.Own}",
    "a logger": "trainer: {logger: NAME.Own}",
    "a function": "trainer: {callbacks: [{class_path: LambdaCallback, init_args: {on_fit_start: NAME.function}}]}",
    "a file within": "trainer: {callbacks: FOLDER/within.yaml}",
    "in place of the template": "data: {inputs: {tokenizer: a, template: {name: a, write: NAME.function, stop: a}}}",
    "its own word for it": "trust_code: NAME\ntrainer: {callbacks: [{class_path: NAME.Own}]}",
    "a command": "trainer: {strategy: {class_path: subprocess.Popen, init_args: {args: [touch, FOLDER/ran]}}}",
    "where anything goes": "data: {inputs: {tokenizer: {class_path: subprocess.Popen, init_args: {args: [touch, "
    "FOLDER/ran]}}, template: {name: a, write: lightning.pytorch.seed_everything, stop: a}}}",
    "of torch's": "trainer: {callbacks: [{class_path: torch.hub.load}]}",
}


def fit_with(config: str, name: str, folder: Path, *flags: str) -> Any:
    file = folder / "config.yaml"
    file.write_text(config.replace("NAME", name).replace("FOLDER", str(folder)))
    (folder / "within.yaml").write_text(f"[{name}.Own]")
    return parse_training(["fit", "--config", str(file), "--model.language=a", "--data.train.text=[a]", *flags])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_config_names_no_code_but_the_trainer_s_own(config: str, outside: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml: .*would run .*which is not on the list.*--trust_code"):
        fit_with(config, outside, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_code_that_the_user_trusts_is_made(outside: str, tmp_path: Path) -> None:
    for flag in (["--trust_code", f"other,{outside}"], [f"--trust_code={outside}"]):
        fit_with(CONFIGS["a callback"], outside, tmp_path, *flag)
        assert (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="--trust_code a b: name packages"):
        fit_with("{seed_everything: 1}", outside, tmp_path, "--trust_code", "a b")


# Checkpoints


class Runs:
    """A pickle of it runs code when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


@pytest.fixture
def hostile_checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    file = folder / f"{tmp_path.name}.ckpt"
    torch.save({"pytorch-lightning_version": "2.6.0", "state_dict": {}, "own": Runs(tmp_path / "ran")}, file)
    torch.load(file, weights_only=False)
    (tmp_path / "ran").unlink()  # it does run where it may
    return file


@pytest.mark.parametrize("asked", [None, False, True])
def test_no_code_of_a_checkpoint_is_run(hostile_checkpoint: Path, tmp_path: Path, asked: bool | None) -> None:
    with pytest.raises(UserError, match=r"a damaged checkpoint.*"):
        WholeCheckpoints().load_checkpoint(hostile_checkpoint, weights_only=asked)
    assert not (tmp_path / "ran").exists()


def test_no_code_of_a_checkpoint_at_a_web_address_is_run(
    hostile_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, directory=str(hostile_checkpoint.parent), **kwargs)

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/{hostile_checkpoint.name}"
        with pytest.raises(UserError, match=r"a damaged checkpoint.*[Ww]eights"):
            WholeCheckpoints().load_checkpoint(address)
        server.shutdown()
    assert not (tmp_path / "ran").exists()


def test_nobody_can_ask_for_the_code_of_a_checkpoint(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    (tmp_path / "c.yaml").write_text("weights_only: false\n")
    flags = [f"--model.language={llama}", "--model.template=chatml", "--model.lora.r=2", f"--out={tmp_path / 'out'}"]
    flags += [f'--data.train.text=["{tmp_path / "a.jsonl"}"]', f"--config={tmp_path / 'c.yaml'}"]
    assert main(["fit", *flags]) == 2
    assert "--weights_only false: would run code" in capsys.readouterr().err


# Templates

ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''|attr('__class__') }}",
    "{{ [].__init__.__globals__ }}",
    "{{ '{0.__class__.__init__.__globals__}'.format('') }}",
    "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "{{ (''|map('attr', '__class__')|list)[0] }}",
    "{{ self._TemplateReference__context }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'] }}",
    "{{ ''.join.__self__.__class__ }}",
    "{% set x = [].append %}{{ x.__globals__ }}",
    "{% for x in (1, 2) %}{{ loop.__class__.__init__.__globals__ }}{% endfor %}",
    "{% macro m() %}{{ m.__func.__globals__ }}{{ m._func.__globals__ }}{% endmacro %}{{ m() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as x %}{{ x.system }}",
    "{{ raise_exception.__globals__ }}",
)


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("boolq")


@pytest.mark.parametrize("escape", ESCAPES)
def test_the_templates_of_a_task_reach_nothing_but_the_row(escape: str, task: Task) -> None:
    row = {"question": "is it", "passage": "It is.", "answer": True, "photo": EncodedImage(b"", "0")}
    plain = replace(task, prompt="{{ question }}")
    assert Renderer(plain, "blind").question(0, row).prompt == "is it"
    with pytest.raises(UserError, match=r"boolq\.yaml: prompt: "):
        Renderer(replace(task, prompt=escape), "blind").question(0, row)


# what transformers gives to chat templates, and runs in its own sandbox
@pytest.mark.parametrize("escape", [e for e in ESCAPES if "passwd" not in e and "import" not in e])
def test_the_chat_template_of_a_model_folder_reaches_nothing(escape: str, llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}" + escape)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = Conversation((Turn("user", "a"), Turn("assistant", "b")), (), "x", 1)
    try:
        written = tokenizer_template(tokenizer).render(said).text
    except UserError:
        return
    assert not any(sign in written for sign in ("<class", "__name__", "<module", "function", "built-in"))


def test_a_model_that_brings_its_own_code_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    config = json.loads((folder / "config.json").read_text())
    ours = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": ours}))
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    with pytest.raises(UserError, match="model"):
        mmtune.VisionLanguageModel.from_pretrained(folder, template="chatml")
    assert not (tmp_path / "ran").exists()
