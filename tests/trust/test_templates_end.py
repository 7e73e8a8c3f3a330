"""The templates of model folders and of tasks are over soon and stay small, in the main thread and in others."""

from __future__ import annotations

import resource
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from mmtune.cli.main import main
from mmtune.common.errors import UserError
from mmtune.data.conversation import Conversation
from mmtune.data.rendering import sandbox
from mmtune.data.rendering.chat_rendering import render_chat
from mmtune.data.rendering.templates import tokenizer_template
from mmtune.evaluation.tasks.render import Renderer
from mmtune.evaluation.tasks.task import Task, load_task
from mmtune.interfaces import Turn
from mmtune.models.interop.chat_templates import template_of


def doubled(begin: str, step: str, end: str) -> str:
    """A template that takes a step 45 times, each of which doubles what there is."""
    loop = f"{{% for i in [0] * 45 %}}{{% set n.x = {step} %}}{{% endfor %}}"
    return f"{{% set n = namespace(x={begin}) %}}{loop}{end}"


LONG = "{% set l = ['a'] * 90000 %}"

FOR_HOURS = {
    "loops in loops": "{% for a in [0] * 90000 %}{% for b in [0] * 90000 %}{% for c in [0] * 90000 %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "loops over one list": LONG + "{% for a in l %}{% for b in l %}{% for c in l %}{% endfor %}{% endfor %}"
    "{% endfor %}",
    "loops with a condition": LONG + "{% for a in l %}{% for b in l if b == 'c' %}{% endfor %}{% endfor %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "a loop that calls itself": LONG + "{% for a in l recursive %}{% if loop.depth < 9 %}{{ loop(l) }}{% endif %}"
    "{% endfor %}",
    "searches": LONG + "{% for a in l %}{% if 'b' in l %}{% endif %}{% endfor %}",
    "tests": LONG + "{% for a in l %}{% if 'b' is in(l) %}{% endif %}{% endfor %}",
    "comparisons": LONG + "{% for a in l %}{% if l[:-1] == l[1:] %}{% endif %}{% endfor %}",
    "sorting": LONG + "{% for a in l %}{% set b = l | sort %}{% endfor %}",
    "filters of filters": LONG + "{% for a in l %}{% set b = l | map('upper') | map('lower') | list %}{% endfor %}",
    "counting": LONG + "{% for a in l %}{% set b = l.count('b') %}{% set c = l | join | length %}{% endfor %}",
    "texts": "{% set t = 'ab' * 400000 %}{% for a in [0] * 90000 %}{% set b = t | title %}{% endfor %}",
}  # fmt: skip

ALL_MEMORY = {
    "repeated": "{{ ('a' * 999999) * 999999 }}",
    "a list repeated": "{{ ([0] * 99999) * 999999 }}",
    "a power": "{{ 2 ** 2 ** 60 }}",
    "products": doubled("3", "n.x * n.x", "{{ n.x > 1 }}"),
    "doubled by ~": doubled("'a'", "n.x ~ n.x", "{{ n.x | length }}"),
    "doubled by +": doubled("'a'", "n.x + n.x", "{{ n.x | length }}"),
    "lists doubled by +": doubled("[1]", "n.x + n.x", "{{ n.x | length }}"),
    "doubled by a block": "{% set n = namespace(x='a') %}{% for i in [0] * 45 %}"
    "{% set b %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = b %}{% endfor %}{{ n.x | length }}",
    "doubled by a macro": "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}"
    + doubled("'a'", "m(n.x)", "{{ n.x | length }}"),
    "doubled by format": doubled("'a'", "'{}{}'.format(n.x, n.x)", "{{ n.x | length }}"),
    "doubled by %": doubled("'a'", "'%s%s' % (n.x, n.x)", "{{ n.x | length }}"),
    "doubled by a macro that calls itself": "{% macro m(x, n) %}{% if n %}{{ m(x ~ x, n - 1) }}{% else %}{{ x }}"
    "{% endif %}{% endmacro %}{{ m('a', 45) }}",
    "lists by a macro that calls itself": "{% macro m(x, n) %}{% if n %}{{ m([x, x], n - 1) }}{% else %}{{ x }}"
    "{% endif %}{% endmacro %}{{ m('a', 45) }}",
    "lists in lists": doubled("[1]", "[n.x, n.x]", "{{ n.x }}"),
    "lists in lists as text": doubled("[1]", "[n.x, n.x]", "{{ n.x | string | length }}"),
    "lists in lists and ~": doubled("[1]", "[n.x, n.x]", "{{ (n.x ~ 'a') | length }}"),
    "lists in lists formatted": doubled("[1]", "[n.x, n.x]", "{{ '{}'.format(n.x) | length }}"),
    "lists in lists by %": doubled("[1]", "[n.x, n.x]", "{{ ('%s' % (n.x,)) | length }}"),
    "lists in lists joined": doubled("[1]", "[n.x, n.x]", "{{ n.x | join | length }}"),
    "lists in lists compared": doubled("[1]", "[n.x, n.x]", "{% set a = n.x %}")
    + doubled("[1]", "[n.x, n.x]", "{{ n.x == a }}"),
    "lists in lists sought": doubled("[1]", "[n.x, n.x]", "{{ [2] in n.x }}"),
    "written again and again": "{% set t = 'a' * 900000 %}{% for i in [0] * 90000 %}{{ t }}{% endfor %}",
    "a filter's width": "{{ 'a' | center(1000000000) | length }}",
    "a constant's width": "{{ 'a' | center(9999999999) }}",
    "mapped": "{{ ['a'] | map('center', 1000000000) | list | length }}",
    "a method's width": "{{ 'a'.center(1000000000) | length }}",
    "to the left": "{{ 'a'.ljust(1000000000) | length }}",
    "zeros": "{{ 'a'.zfill(1000000000) | length }}",
    "tabs": "{{ '\t'.expandtabs(1000000000) | length }}",
    "printf": "{{ ('%1000000000d' % 1) | length }}",
    "printf of two": "{{ ('%*d' % (1000000000, 1)) | length }}",
    "the filter printf": "{{ '%1000000000d' | format(1) | length }}",
    "format": "{{ '{:1000000000}'.format(1) | length }}",
    "format in format": "{{ '{:{}}'.format(1, 1000000000) | length }}",
    "format of a mapping": "{{ '{a:1000000000}'.format_map({'a': 1}) | length }}",
    "replaced": "{{ ('a' * 99999).replace('a', 'b' * 99999) | length }}",
    "the filter replace": "{{ ('a' * 99999) | replace('a', 'b' * 99999) | length }}",
    "translated": "{{ ('a' * 99999).translate({97: 'b' * 99999}) | length }}",
    "joined": "{{ ('a' * 99999).join(['a'] * 99999) | length }}",
    "joined of what is mapped": LONG + "{{ ''.join((['a' * 99999] * 9999) | map('upper')) | length }}",
    "the filter join": "{{ (['a'] * 99999) | join('b' * 99999) | length }}",
    "indented": "{{ ('\n' * 99999) | indent(99999) | length }}",
    "batches": "{{ [1] | batch(1000000000, 0) | list | length }}",
    "slices": "{{ [1] | slice(1000000000) | list | length }}",
    "rounded": "{{ 1 | round(1000000000, 'ceil') }}",
    "bytes": "{{ (5).to_bytes(1000000000, 'big') | length }}",
    "summed": "{{ ([['a'] * 300] * 3000) | sum(start=[]) | length }}",
}  # fmt: skip
ONLY_CHAT = {
    "ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a long range": "{% for a in range(10 * 999999999) %}{% endfor %}",
    "lipsum": "{{ lipsum(n=1000000000) | length }}",
    "tojson": doubled("[1]", "[n.x, n.x]", "{{ n.x | tojson | length }}"),
    "tojson far to the right": "{{ ([[]] * 9999) | tojson(indent=999999) | length }}",
    "a loop within generation": "{% generation %}" + LONG + "{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}"
    "{% endgeneration %}",
}  # fmt: skip


WHY = r"(it takes more than|it makes a text or a list of|\* makes|\*\* is not for|a width of|sum is for numbers)"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give templates little time; and end a test that hangs, or takes all memory, as a failure."""
    monkeypatch.setattr(sandbox, "SECONDS", 0.03)

    def hangs(*_: Any) -> None:
        pytest.fail("the template does not end")

    before = signal.signal(signal.SIGALRM, hangs)
    memory = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**32, memory[1]))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, memory)


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("boolq")


def speaking(source: str, llama: Path, tmp_path: Path) -> Any:
    """A tokenizer out of a folder with this chat template."""
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}" + source)
    return AutoTokenizer.from_pretrained(folder)


# a task's has no names but those of the row
WITHOUT_NAMES = {name: source for name, source in (FOR_HOURS | ALL_MEMORY).items() if "namespace" not in source}


@pytest.mark.parametrize("source", WITHOUT_NAMES.values(), ids=WITHOUT_NAMES)
def test_a_task_s_template_ends(source: str, task: Task) -> None:
    row = {"question": "is it", "passage": "It is.", "answer": True}
    with pytest.raises(UserError, match=rf"boolq\.yaml: prompt: row 7: {WHY}"):
        Renderer(replace(task, prompt=source), "blind").question(7, row)


REFUSED = (ONLY_CHAT["a long range"], ONLY_CHAT["lipsum"])  # as the template of any row that is wrong
EVERY = FOR_HOURS | ALL_MEMORY | ONLY_CHAT


@pytest.mark.parametrize("source", EVERY.values(), ids=EVERY)
def test_a_model_folder_s_template_ends(source: str, llama: Path, tmp_path: Path) -> None:
    tokenizer = speaking("{% if messages[0].content == 'hang' %}" + source + "{% endif %}", llama, tmp_path)
    said = Conversation((Turn("user", "hang"), Turn("assistant", "b")), (), "x", 1)
    why = rf"chat template is not rendered: {WHY}" if source not in REFUSED else r"Range too big|'lipsum' is undefined"
    with pytest.raises(UserError, match=why):
        tokenizer_template(tokenizer).render(said)


def test_the_message_names_the_file_and_no_row_is_skipped_for_it(llama: Path, tmp_path: Path) -> None:
    tokenizer = speaking(FOR_HOURS["loops in loops"], llama, tmp_path)
    with pytest.raises(UserError, match=r"model/chat_template\.jinja: .* takes more than 0\.03 seconds") as told:
        tokenizer_template(tokenizer)
    assert type(told.value) is UserError  # a RowError would be one row's, and the next one's after it


def test_a_template_of_another_tool_s_folder_ends(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "' + FOR_HOURS["macros"] + '"}')
    with pytest.raises(UserError, match=r"tokenizer_config\.json: .* takes more than 0\.03 seconds"):
        template_of(str(tmp_path))


def test_it_ends_in_a_thread_and_in_a_worker_of_the_loader(llama: Path, tmp_path: Path) -> None:
    tokenizer = speaking(FOR_HOURS["loops over one list"], llama, tmp_path)
    told: list[str] = []

    def render(*_: Any) -> str:
        try:
            return render_chat(tokenizer, [{"role": "user", "content": "a"}])
        except UserError as error:
            told.append(str(error))
            return str(error)

    thread = threading.Thread(target=render)
    thread.start()
    thread.join()
    assert "takes more than" in told[0]
    loader = torch.utils.data.DataLoader([0], num_workers=1, collate_fn=render)  # type: ignore[arg-type, type-arg]
    assert "takes more than" in next(iter(loader))


def test_a_command_says_so_in_one_line(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speaking(FOR_HOURS["macros"], llama, tmp_path)
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    flags = [f"--tokenizer={tmp_path / 'model'}", "--template=tokenizer"]
    assert main(["data", str(tmp_path / "a.jsonl"), *flags]) == 2
    said = capsys.readouterr().err
    assert "chat_template.jinja" in said
    assert "takes more than" in said


ORDINARY = (
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ m.role ~ ':' ~ m['content'] | trim }}"
    "{% if not loop.last %}, {% endif %}{% endfor %}{% if add_generation_prompt %}>{% endif %}",
    "{% set n = namespace(i=0, t='') %}{% for m in messages[::-1] if m.role in ['user'] %}{% set n.i = n.i + 1 %}"
    "{% set n.t = n.t + m.content[:3] %}{% endfor %}{{ n.i }}{{ n.t }}",
    "{%- macro show(x, wide=4) -%}[{{ x | center(wide) }}|{{ '%5.1f' % 2.25 }}|{{ '{:>6}'.format(x) }}]{%- endmacro -%}"
    "{{ show('a') }}{{ show(wide=6, x='b') }}",
    "{% for m in messages recursive %}{{ m.content }}{% if loop.depth < 2 %}({{ loop(messages[:1]) }}){% endif %}"
    "{% else %}none{% endfor %}",
    "{{ messages | tojson }}{{ messages | map(attribute='role') | join(',') }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ ('a', 'b') | join('-') }}"
    "{{ [3, 1, 2] | sort }}{{ {'a': 1}.items() | list }}",
    "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{% break %}{% endfor %}{{ bos_token }}{{ eos_token }}{{ tools is none }}",
    "{% for m in messages %}{% set content = m.content.split('o')[-1].replace('l', 'L').strip('\n') %}{{ content }}"
    "{{ 7 % 4 * 3 - 2 }}{{ 2 * 'x' }}{{ 1 < 2 <= 2 }}{{ 'a' not in m.content }}{% endfor %}{{ range(3) | list }}",
    "{% macro show() %}<{{ caller(1) }}>{% endmacro %}{% call(x) show() %}{{ x }}{% endcall %}",
    "{% if messages[0].content is string and messages[0].content is not mapping %}{{ dict(a=1, b=[2]) }}{% endif %}"
    "{{ messages | length }}{{ messages[0] | items | list }}{{ (messages | first)['role'] | upper }}"
    "{{ undefined_name }}",
)


@pytest.mark.parametrize("source", ORDINARY)
def test_other_templates_write_what_transformers_writes(source: str, llama: Path, tmp_path: Path) -> None:
    tokenizer = speaking(source, llama, tmp_path)
    messages = [{"role": "user", "content": "Hello\n"}, {"role": "assistant", "content": "No, world"}]
    for said in (messages[:1], messages):
        for prompt in (False, True):
            theirs = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=prompt)
            assert render_chat(tokenizer, said, prompt=prompt) == theirs


def test_a_long_conversation_has_time(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 5.0)
    tokenizer = speaking("".join(ORDINARY[:2]), llama, tmp_path)
    messages = [{"role": "user", "content": "a" * 1000}] * 2000
    assert render_chat(tokenizer, messages).startswith("a")
