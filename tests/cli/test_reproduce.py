"""`mmtune reproduce`: the variants, what they share, going on, and what is not called unseen."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmtune.analysis.study import study
from mmtune.analysis.variants import read_variants
from mmtune.cli import reproduce
from mmtune.cli.main import main
from mmtune.common.errors import UserError
from mmtune.evaluation.contamination.check import read_set_checks
from mmtune.experiments.reproduce.data import NUMBERS, object_questions
from mmtune.experiments.reproduce.presets import PRESETS, VARIANTS, Preset

THINGS = ("dog", "cup", "tie", "bus", "bed", "kite")
STORY = "once upon a time a fox and an owl went down to the river to fish for eels"
TASKS = {
    "tales": {"modality": "language", "prompt": "{{ question }}", "dataset": {"path": "own/tales", "split": "test"}},
    "sights": {
        "modality": "vision",
        "images": ["image"],
        "prompt": "{{ question }}",
        "dataset": {"path": "own/sights", "split": "test"},
    },
}
COMMON = {"version": 1, "target": "yes", "answer": "yes_no", "max_tokens": 2, "metrics": ["accuracy"]}


def object_file(folder: Path, photos: list[list[str]]) -> Path:
    file = folder / "objects.jsonl"
    rows = [{"image": f"{n}.png", "objects": objects} for n, objects in enumerate(photos)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@given(
    st.lists(st.lists(st.sampled_from(THINGS), min_size=1, max_size=6), min_size=1, max_size=12),
    st.integers(0, 99),
)
def test_answers_about_objects_are_true(
    tmp_path_factory: pytest.TempPathFactory, photos: list[list[str]], seed: int
) -> None:
    rows = object_questions(object_file(tmp_path_factory.mktemp("objects"), photos), seed)
    asked_yes_no: Counter[tuple[str, str]] = Counter()
    for row in rows:
        there = set(photos[int(Path(row["image"]).stem)])
        question, answer = (turn["value"] for turn in row["conversations"])
        assert question.startswith("<image>\n")
        words = set(question.replace(",", " ").replace("?", " ").replace(":", " ").split())
        named = {thing for thing in THINGS if thing in words}
        if answer in ("yes", "no"):
            (thing,) = named
            assert (thing in there) == (answer == "yes")
            asked_yes_no[row["image"], answer] += 1
        elif answer in NUMBERS:
            assert NUMBERS.index(answer) == len(named & there)
        elif len(answer) == 1:
            options = dict(line.split(": ") for line in question.splitlines() if line[1:3] == ": ")
            assert options[answer] in there
            assert not (set(options.values()) - {options[answer]}) & there
        else:
            assert set(answer.replace(" and ", ", ").split(", ")) == there
    everything = {thing for photo in photos for thing in photo}
    for number, photo in enumerate(photos):
        if len(everything - set(photo)) >= 2:  # there is enough to ask about that is not there
            assert asked_yes_no[f"{number}.png", "yes"] == asked_yes_no[f"{number}.png", "no"]


@pytest.mark.parametrize("line", ["{", "[]", '{"image": "a.png"}', '{"image": "a.png", "objects": 3}'])
def test_a_damaged_file_of_objects_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "objects.jsonl"
    file.write_text('{"image": "a.png", "objects": ["dog"]}\n' + line)
    with pytest.raises(UserError, match=r"objects\.jsonl, row 2: needs 'image' and 'objects'"):
        object_questions(file)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, llama: Path, tower_weights: Path) -> Path:
    """Data of both kinds, an evaluation set of both kinds, and the configs of a model of two blocks."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "text.jsonl").write_text(
        "".join(json.dumps({"prompt": f"What is {n}?", "completion": f"It is {n}"}) + "\n" for n in range(30))
        + json.dumps({"prompt": f"Tell me: {STORY}?", "completion": "yes"})
    )
    (folder / "images").mkdir()
    for number in range(6):
        image = Image.linear_gradient("L").rotate(60 * number).resize((48, 48))
        Image.merge("RGB", [image, image, image.transpose(Image.Transpose.ROTATE_90)]).save(
            folder / "images" / f"{number}.png"
        )
    captions = [
        {
            "id": str(n),
            "image": f"{n % 6}.png",
            "conversations": [{"from": "human", "value": "<image>\nSay it."}, {"from": "gpt", "value": f"View {n}."}],
        }
        for n in range(12)
    ]
    (folder / "captions.json").write_text(json.dumps(captions))
    object_file(folder, [["dog", "cup"], ["tie"], ["bus", "bed"], ["dog"], ["cup", "tie"], ["bed"]])
    photo = (folder / "images" / "0.png").read_bytes()
    rows = {
        "tales": [{"question": f"Is it {n} that you mean"} for n in range(5)] + [{"question": STORY}],
        "sights": [{"question": "Is it big?", "image": {"bytes": photo, "path": "x.png"}}] * 4,
    }
    for name, task in TASKS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **COMMON, **task}))
        file = folder / "hub" / "own" / name / "default" / "test.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows[name]), file)
    suite = {"name": "both", "description": "both", "tasks": [str(folder / f"{name}.yaml") for name in TASKS]}
    (folder / "both.yaml").write_text(yaml.safe_dump(suite))
    model = {"language": str(llama), "template": "chatml", "vision": {"tower": "timm:test_vit", "grid": 2}}
    model["vision"]["weights"] = str(tower_weights)  # type: ignore[index]
    trainer = {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False}
    data = {"max_length": 256, "pack_tokens": 2048, "pack_rows": 4}
    align = {"model": {"stage": "align", **model}, "data": data, "trainer": trainer}
    tune = {
        "model": {"stage": "tune", "base": "nowhere", "lora": {"r": 4, "alpha": 8}},
        "data": data,
        "trainer": trainer,
    }
    (folder / "align.yaml").write_text(yaml.safe_dump(align))
    (folder / "tune.yaml").write_text(yaml.safe_dump(tune))
    return folder


@pytest.fixture(scope="module")
def preset(world: Path) -> Preset:
    """Of a model of two blocks."""
    return Preset(
        align=str(world / "align.yaml"),
        tune=str(world / "tune.yaml"),
        captions=("captions.json",),
        text=("text.jsonl",),
        visual=("captions.json",),
        objects="objects.jsonl",
        image_root="images",
        samples=16,
        align_steps=2,
        suite=str(world / "both.yaml"),
        limit=4,
        below_data_root=True,
    )


@pytest.fixture
def small(preset: Preset, monkeypatch: pytest.MonkeyPatch) -> Preset:
    """The preset tiny, its steps in this process."""
    monkeypatch.setitem(PRESETS, "tiny", preset)
    monkeypatch.setattr(reproduce, "_run_process", lambda command: main(command[3:]))
    return preset


Reproduce = Callable[..., int]


@pytest.fixture
def run(small: Preset, world: Path, tmp_path: Path) -> Reproduce:
    flags = ["reproduce", "--preset", "tiny", "--data-root", str(world), "--out", str(tmp_path / "out")]
    return lambda *more: main([*flags, *more])


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_the_whole_way(
    run: Reproduce, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run() == 0
    out, said = tmp_path / "out", capsys.readouterr()
    record = read(out / "reproduce.json")
    assert [variant["name"] for variant in record["variants"]] == ["base", *VARIANTS]
    for variant, fraction in VARIANTS.items():
        folder = out / "seed-42" / variant
        ledger, sources = read(folder / "ledger.json"), read(folder / "data.json")["sources"].values()
        assert ledger["samples"] == 16
        assert sum(source["text"] for source in sources) == round(16 * fraction)
        assert (ledger["tokens"]["image"] == 0) == (variant == "language-only")
        if variant == "language-only":
            assert ledger["tower_passes"] == 0
        assert read(folder / "eval" / "results.json")["tasks"].keys() == TASKS.keys()

    # the photo of `sights` is one of those trained on: rows with it are left out, and so is the row with the story
    check = read(out / "unseen.json")
    assert {task: found["verdict"] for task, found in check["sets"].items()} == {"tales": "seen", "sights": "seen"}
    drawn = [read(file)["sets"] for file in out.rglob("seed-*/*/unseen.json")]
    assert {found["verdict"] for sets in drawn for found in sets.values()} == {"unseen"}
    assert record["seen"] == {}

    found = study(read_variants([out]))
    assert [variant.name for variant in found.variants] == ["base", *VARIANTS]
    for variant in found.variants[1:]:
        assert variant.cost is not None
        assert variant.cost.flops == sum(read(out / "seed-42" / variant.name / "ledger.json")["flops"].values())
    assert found.averaged == ["tales", "sights"]
    assert "visual-only" in said.out
    assert (out / "report.html").is_file()

    # again: nothing is computed; with another seed: only its variants are
    started: list[list[str]] = []
    monkeypatch.setattr(reproduce, "_run_process", lambda command: started.append(command) or main(command[3:]))
    assert run() == 0
    assert started == []
    assert run("--seed", "43") == 0
    assert len(started) == 2 * len(VARIANTS)
    assert read(out / "reproduce.json")["seeds"] == [42, 43]
    assert {variant.averages["overall"].seeds for variant in study(read_variants([out])).variants} == {1, 2}


@dataclass(frozen=True)
class GoneOn:
    """A comparison that was stopped by its third step, and begun again: its exit statuses, errors and steps."""

    out: Path
    statuses: list[int]
    errors: list[str]
    steps: list[str]


@pytest.fixture(scope="module")
def gone_on(preset: Preset, world: Path, tmp_path_factory: pytest.TempPathFactory) -> GoneOn:
    """Made once, for it takes as long as a whole comparison."""
    found = GoneOn(tmp_path_factory.mktemp("gone_on") / "out", [], [], [])

    def fails_third(command: list[str]) -> int:
        found.steps.append(command[3])
        return 143 if len(found.steps) == 3 else main(command[3:])

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", preset)
        patch.setattr(reproduce, "_run_process", fails_third)
        for _ in range(2):
            with contextlib.redirect_stderr(io.StringIO()) as error:
                status = main(["reproduce", "--preset", "tiny", "--data-root", str(world), "--out", str(found.out)])
            found.statuses.append(status)
            found.errors.append(error.getvalue())
    return found


def test_a_set_that_was_not_compared_is_not_called_unseen(run: Reproduce, gone_on: GoneOn, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(gone_on.out, out)
    file = out / "seed-42" / "50-50" / "unseen.json"
    check = read(file)
    check["sets"]["tales"] |= {"verdict": "unchecked", "reason": "its rows could not be read"}
    check["sets"]["sights"] |= {"verdict": "seen", "hit_rows": 3, "rows": 4}
    file.write_text(json.dumps(check))
    assert run() == 0
    assert read(out / "reproduce.json")["seen"] == {
        "tales": "not compared with what 50-50 learnt: its rows could not be read",
        "sights": "3 of its 4 rows are in what 50-50 learnt",
    }
    assert study(read_variants([out])).averaged == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"sets": {"tales": {"rows": 4}}}, "sets: tales: key 'hit_rows' is missing"),
        ({"sets": {"tales": {"rows": 4, "hit_rows": 0, "verdict": "fine"}}}, "sets: tales: verdict"),
        ([], "a mapping of keys to values"),
    ],
)
def test_a_damaged_record_of_contamination_is_named(tmp_path: Path, damage: Any, said: str) -> None:
    (tmp_path / "unseen.json").write_text(json.dumps(damage))
    with pytest.raises(UserError, match=f"unseen.json: .*{said}.*delete .* and give the same command again"):
        read_set_checks(tmp_path)


def test_a_step_that_fails_ends_it_and_the_rest_is_done_later(gone_on: GoneOn) -> None:
    assert gone_on.statuses == [143, 0]
    assert "the same command goes on from here" in gone_on.errors[0]
    assert gone_on.steps == ["fit", "eval", "fit", *["fit", "eval"] * len(VARIANTS)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--budget", "3"], "--budget 3: must be at least 16"),
        (["--seeds", "0"], "--seeds 0: must be at least 1"),
        (["--limit", "0"], "--limit 0: must be at least 1"),
        (["--preset", "large"], "large"),
    ],
)
def test_wrong_flags(run: Reproduce, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*flags) == 2
    assert message in capsys.readouterr().err


def test_another_comparison_in_the_folder_is_refused(
    run: Reproduce, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--plan") == 0
    assert "language-only" in capsys.readouterr().out
    assert run("--limit", "3", "--plan") == 2
    assert "holds another comparison (limit 4 then, 3 now)" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert run("--out", str(tmp_path / "other")) == 2
    assert "is no comparison of mmtune reproduce" in capsys.readouterr().err
    (tmp_path / "out" / "reproduce.json").write_text('{"settings": []}')
    assert run("--plan") == 2
    assert "out/reproduce.json: settings: must be a mapping of keys to values, not []" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changed", ["text.jsonl", "captions.json", "objects.jsonl", "align.yaml", "tune.yaml", "tales.yaml", "hub"]
)
def test_content_that_changed_under_its_name_is_noticed(
    small: Preset, world: Path, tmp_path: Path, changed: str
) -> None:
    def claim() -> None:
        reproduce.Comparison("tiny", small, tmp_path / "out", [42], str(world), None).claim()

    claim()
    claim()
    file = world / changed if changed != "hub" else next((world / "hub").rglob("*.parquet"))
    before = file.read_bytes()
    try:
        file.write_bytes(
            before.replace(b"max_length: 256", b"max_length: 255").replace(b"version: 1", b"version: 2")
            if file.suffix == ".yaml"
            else before + b"\n"
        )
        assert file.read_bytes() != before
        with pytest.raises(UserError, match="was begun with other content of"):
            claim()
    finally:
        file.write_bytes(before)
    claim()


def test_data_that_is_not_there_is_named(
    run: Reproduce, small: Preset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(PRESETS, "tiny", replace(small, text=("missing.jsonl",)))
    assert run() == 2
    assert "missing.jsonl: no such file" in capsys.readouterr().err
    assert main(["reproduce", "--preset", "tiny", "--out", str(tmp_path / "new")]) == 2
    assert "--data-root: missing" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_commands_of_a_preset_parse(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from command_lines import check

    comparison = reproduce.Comparison(name, PRESETS[name], tmp_path, [42], "data", None)
    for step in comparison.steps():
        check(step.arguments)
    assert [step.arguments[0] for step in comparison.steps()] == ["fit", "eval"] * (len(VARIANTS) + 1)


def test_a_smaller_budget_shrinks_everything() -> None:
    options = reproduce.ReproduceOptions("tiny", "out", budget=48)
    preset = reproduce._scaled(PRESETS["tiny"], options)
    assert (preset.samples, preset.align_steps, preset.limit) == (48, 12, 10)
    larger = reproduce._scaled(PRESETS["tiny"], replace(options, budget=960))
    assert (larger.samples, larger.align_steps, larger.limit) == (960, 120, 100)
