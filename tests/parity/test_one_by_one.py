"""What is computed one by one is trained and scored as by transformers' and peft's own code."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import TALK, Side, save_family, small_config
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from mmtune.cli.main import main
from mmtune.data.collate import pack
from mmtune.data.conversation import Conversation
from mmtune.data.encoding import encode
from mmtune.generation.chat import Chat
from mmtune.generation.generator import VisionLanguageModel
from mmtune.interfaces import Prompt, SamplingParams, Turn
from mmtune.models.adapters import adapted_layers
from mmtune.models.spec import LoraOptions
from mmtune.training.module import InstructionTuning

pytestmark = pytest.mark.near_ties  # random weights

STEPS, RATE = 3, 1e-2
FAMILIES: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba": {"state_size": 4},
    "falcon_h1": {
        "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_d_state": 8, "mamba_n_groups": 1,
    },
    "gemma2": {"head_dim": 16, "final_logit_softcapping": 2.0, "sliding_window": 16},
}  # fmt: skip


@pytest.fixture(
    scope="module",
    params=["lfm2", "mamba", *(pytest.param(name, marks=pytest.mark.slow) for name in ("falcon_h1", "gemma2"))],
)
def folder(request: pytest.FixtureRequest, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one_by_one") / request.param
    save_family(path, llama, small_config(request.param, **FAMILIES[request.param]))
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in TALK))
    return file


def fit(folder: Path, rows: Path, out: Path, *flags: str) -> int:
    return main([
        "fit", f"--model.language={folder}", "--model.template=chatml", f"--model.learning_rate={RATE}",
        f"--data.train.text=[{rows}]", "--data.max_length=256", "--data.pack_rows=3", f"--trainer.max_epochs={STEPS}",
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", f"--out={out}", *flags,
    ])  # fmt: skip


def losses_of(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as stream:
        return [float(row["train_loss"]) for row in csv.DictReader(stream) if row["train_loss"]]


def plain_run(folder: Path, *, lora: bool) -> tuple[list[float], Any]:
    """Three steps over all rows by transformers' model and peft's adapters, row by row, and nothing of ours."""
    from peft import LoraConfig, get_peft_model

    inputs = VisionLanguageModel.from_pretrained(folder, template="chatml").inputs()
    said = [Conversation((Turn("user", q), Turn("assistant", a)), (), "rows", i) for i, (q, a) in enumerate(TALK)]
    batches = [pack([encode(one, inputs, 256)], inputs) for one in said]
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    if lora:
        torch.manual_seed(42)
        targets = adapted_layers(model, LoraOptions())
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, STEPS)
    losses = []
    for _ in range(STEPS):
        total, count = torch.zeros(()), 0
        for batch in batches:
            logits = model(input_ids=batch.input_ids[None], use_cache=False).logits[0].float()
            total = total + cross_entropy(logits, batch.targets, ignore_index=-100, reduction="sum")
            count += batch.supervised_tokens
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(float(total.detach()) / count)
    return losses, model


@pytest.mark.parametrize("lora", [True, False], ids=["adapters", "in full"])
def test_a_run_is_that_of_plain_code(folder: Path, rows: Path, tmp_path: Path, lora: bool) -> None:
    flags = ["--model.lora.r=4", "--model.lora.alpha=8", "--model.lora.dropout=0"] if lora else []
    assert fit(folder, rows, tmp_path / "run", *flags) == 0
    losses, own = plain_run(folder, lora=lora)
    assert losses_of(tmp_path / "run") == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < losses[0]
    ours = VisionLanguageModel.from_pretrained(tmp_path / "run")
    found, expected = dict(ours.language.named_parameters()), dict(own.named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name], parameter, rtol=1e-2, atol=2e-3, msg=name)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(folder: Path, rows: Path, tmp_path: Path) -> None:
    """In training with dropout and recomputed activations, and held-out rows between the steps."""
    flags = ["--model.lora.r=4", "--model.lora.alpha=8", "--model.lora.dropout=0.1", "--checkpoint_every=1"]
    flags += ["--model.gradient_checkpointing=true", f"--data.validation=[{rows}]", "--trainer.val_check_interval=1"]
    assert fit(folder, rows, tmp_path / "whole", *flags) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InstructionTuning, "training_step", stopped_at(2, InstructionTuning.training_step))
        with pytest.raises(KeyError, match="stopped"):
            fit(folder, rows, tmp_path / "run", *flags)
    assert fit(folder, rows, tmp_path / "run", *flags) == 0
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")
    whole, run = (VisionLanguageModel.from_pretrained(tmp_path / name) for name in ("whole", "run"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(run.state_dict()[name], tensor), name
    merged = VisionLanguageModel.from_pretrained(tmp_path / "run")
    merged.merge_adapters()
    merged.save_pretrained(tmp_path / "merged")
    again = VisionLanguageModel.from_pretrained(tmp_path / "merged")
    asked = ["What is it?"], [["one", "or another"]]
    assert again.loglikelihood(*asked)[0] == pytest.approx(run.loglikelihood(*asked)[0], rel=1e-4)


def stopped_at(step: int, compute: Any) -> Any:
    def training_step(module: Any, batch: Any, number: int) -> Any:
        if module.trainer.global_step == step:
            raise KeyError("stopped")
        return compute(module, batch, number)

    return training_step


def test_what_is_chatted_is_transformers_own(folder: Path) -> None:
    side = Side(folder)
    turns = [Turn("user", "hi")]
    chat, sampling = Chat(side.ours), SamplingParams(max_tokens=12)
    greedy: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
    said = "".join(chat.say("hi", sampling=sampling))
    assert said == side.ours.answer("hi", max_tokens=12) == own_answer(side, turns, **greedy)
    turns += [Turn("assistant", said), Turn("user", "And then?")]
    assert "".join(chat.say("And then?", sampling=sampling)) == own_answer(
        side, turns, max_new_tokens=12, do_sample=False
    )


def test_what_is_drawn_depends_on_seed_name_and_sample_alone(folder: Path) -> None:
    model = Side(folder).ours
    params = SamplingParams(n=2, temperature=0.9, seed=5, max_tokens=12)
    asked = [Prompt.of("hi", name="first"), Prompt.of("Who?", name="second")]
    first, second = model.generate(asked, params)
    assert len({one.text for one in [*first, *second]}) > 2
    assert model.generate(asked[::-1], params) == [second, first]
    assert model.generate(asked[1:], params) == [second]
    drawn = SamplingParams(temperature=0.9, seed=5, max_tokens=12)
    ((same,),) = model.generate([Prompt.of("hi", name="turn 0")], drawn)
    assert "".join(Chat(model).say("hi", sampling=drawn)) == same.text


def own_answer(side: Side, turns: list[Turn], **options: Any) -> str:
    ids = torch.tensor(side.ours.tokenizer(side.ours.template.prompt(turns), add_special_tokens=False).input_ids)
    out = side.own.generate(
        input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], top_k=None, top_p=None, eos_token_id=258,
        pad_token_id=256, **options,
    )  # fmt: skip
    answer: str = side.ours.tokenizer.decode(out[0][len(ids) :], skip_special_tokens=True)
    return answer
