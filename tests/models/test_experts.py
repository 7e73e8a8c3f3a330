"""Models of experts, and of transformers' Conv1D: operations, adapters, memory, saving and merging."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from mmtune.cli.main import main
from mmtune.common.errors import UserError
from mmtune.common.files import read_json
from mmtune.data.collate import pack
from mmtune.data.conversation import Conversation
from mmtune.data.encoding import encode
from mmtune.generation.generator import VisionLanguageModel
from mmtune.interfaces import Turn
from mmtune.models.adapters import add_adapters, is_linear, uncalled_layers, weights_without_adapter
from mmtune.models.cost.flops import FlopsCounter, blocks_cost, count_parameters
from mmtune.models.cost.memory import PackShape, TrainingPass, step_memory, working_bytes
from mmtune.models.export import export
from mmtune.models.fitness.check import fitness_of
from mmtune.models.language import decoder, load_language
from mmtune.models.spec import LoraOptions, ModelSpec
from mmtune.training.objectives.token_loss import chunked_loss, supervised_loss
from tests.models.families import EXPERTS, OTHERS, save, save_hybrid, tiny

TOKENS = 20


def real_pass(base: Any) -> int:
    """Operations of a pass that is computed, by torch's own count."""
    words = base.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(1, TOKENS, words.shape[1], generator=generator).requires_grad_(words.requires_grad)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        out = decoder(base)(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        if out.requires_grad:
            out.sum().backward()
    return int(counter.get_total_flops())


def adapted(family: str, how: str) -> Any:
    """The model, trained in full, in some of its layers, not at all, or by adapters."""
    model = tiny(family)
    if how.startswith("adapters"):
        return add_adapters(model, LoraOptions(r=2, dropout=0.0, experts=how.endswith("experts")))
    model.requires_grad_(how == "in full")
    for name, parameter in model.named_parameters():
        if how == "in part" and ("o_proj" in name or "dense.weight" in name or "c_proj" in name or "out_proj" in name):
            parameter.requires_grad_(True)
    return model


HOW = ["in full", "in part", "frozen", "adapters", "adapters of experts"]
FAMILIES = [*EXPERTS, *OTHERS]
# each way in one family, and some families in one way; the slow test has all
SOME = [*zip(list(EXPERTS)[:8], HOW * 3, strict=False), ("gpt2", "adapters")]
ALL = [(f, h) for f in FAMILIES for h in HOW if (f, h) not in SOME and (f in EXPERTS or h != HOW[-1])]


@pytest.mark.parametrize(("family", "how"), [*SOME, *(pytest.param(*one, marks=pytest.mark.slow) for one in ALL)])
def test_operations_are_what_torch_counts_in_a_real_pass(family: str, how: str) -> None:
    try:
        fitness_of(tiny(family).config, family)
    except UserError as refused:
        pytest.skip(str(refused))
    language = adapted(family, how).train()
    base = language.get_base_model() if how.startswith("adapters") else language
    counted = real_pass(base)
    language = language.to("meta")
    cost = blocks_cost(language)
    assert cost.per_token * TOKENS + cost.per_square * TOKENS**2 + cost.fixed == counted > 0


@pytest.fixture(scope="module")
def saved(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A folder with a tiny model of a family."""
    folder, made = tmp_path_factory.mktemp("families"), dict[str, str]()

    def get(family: str) -> str:
        if family not in made:
            made[family] = str(save(family, folder / family, llama))
        return made[family]

    return get


def with_adapters(language: str, **options: Any) -> VisionLanguageModel:
    """With adapters that say something."""
    lora = LoraOptions(r=3, alpha=6, dropout=0.0, **options)
    model = VisionLanguageModel.assemble(ModelSpec(language, template="chatml", lora=lora))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.eval()


def said(model: VisionLanguageModel) -> list[float]:
    return model.loglikelihood("a question", ["one answer", "another"])


CASES = [
    ("mixtral", {"experts": True}),
    ("mixtral", {}),
    ("olmoe", {"experts": True}),
    ("gpt2", {}),
    ("gpt2", {"dora": True}),
]


@pytest.mark.parametrize(("family", "options"), CASES)
def test_adapters_are_saved_merged_and_exported_as_they_are(
    family: str, options: dict[str, Any], saved: Callable[[str], str], tmp_path: Path
) -> None:
    model = with_adapters(saved(family), **options)
    plain = VisionLanguageModel.assemble(ModelSpec(saved(family), template="chatml")).eval()
    expected = said(model)
    assert said(plain) != pytest.approx(expected, abs=0.05)
    model.save_pretrained(tmp_path / "saved")
    again = VisionLanguageModel.from_pretrained(tmp_path / "saved")
    assert said(again) == expected
    assert again.fingerprint == model.fingerprint
    export(again, "peft", tmp_path / "peft")
    base = pretrained_peft(saved(family), tmp_path / "peft")
    again.language, again.spec.lora = base, None
    again.language.config._attn_implementation = model.base_language.config._attn_implementation
    assert said(again) == pytest.approx(expected, abs=1e-3)
    export(model, "merged", tmp_path / "merged")
    merged = VisionLanguageModel.from_pretrained(tmp_path / "merged")
    assert said(merged) == pytest.approx(expected, abs=1e-3)


def pretrained_peft(base: str, adapter: Path) -> Any:
    """What peft and transformers make of an export, the adapter merged."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    language = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    return PeftModel.from_pretrained(language, str(adapter)).merge_and_unload().eval()


@pytest.mark.parametrize(("family", "options"), [("mixtral", {"experts": True}), ("mixtral", {}), ("gpt2", {})])
def test_a_step_takes_what_the_ledger_and_the_plan_say(
    family: str, options: dict[str, Any], saved: Callable[[str], str]
) -> None:
    """Of the whole model: the pack's documents, the loss, and on the meta device what there is to plan with."""
    model = with_adapters(saved(family), **options)
    model.set_stage("tune")
    model.base_language.config._experts_implementation = "eager"
    rows = [Conversation((Turn("user", f"what{i}"), Turn("assistant", "that")), (), "rows", i) for i in range(3)]
    batch = pack([encode(row, model.inputs(), 200) for row in rows], model.inputs())
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        supervised_loss(model.train()(batch), batch.targets, model.output_layer).backward()
    shape = {"documents": batch.document_lengths, "supervised": batch.supervised_tokens, "image_tokens": 0, "images": 0}
    planned = VisionLanguageModel.assemble(model.spec, meta=True, tokenizer=model.tokenizer).train()
    planned.set_stage("tune")
    assert FlopsCounter(model).step(**shape) == FlopsCounter(planned).step(**shape)
    assert FlopsCounter(model).step(**shape).language == counter.get_total_flops()
    assert count_parameters(planned) == count_parameters(model)
    pack_shape = PackShape(tuple(batch.document_lengths), batch.supervised_tokens)
    working = working_bytes(planned, TrainingPass(pack_shape, chunked_loss))
    trained = 4 * count_parameters(model)[0]
    assert trained < working
    memory = step_memory(planned, working)
    assert memory.frozen == 4 * (count_parameters(model)[1] - count_parameters(model)[0])


def test_what_has_no_adapter_is_said(saved: Callable[[str], str]) -> None:
    mixtral = tiny("mixtral")
    note = weights_without_adapter(mixtral, LoraOptions(), None)
    assert note is not None
    # by hand, of 2 blocks: 4 experts of 3 matrices and a router have none, 4 matrices of attention have one
    experts, router, attention = 4 * 3 * 48 * 32, 4 * 32, 2 * 32 * 32 + 2 * 32 * 16
    share = (experts + router) / (experts + router + attention)
    assert note.startswith(f"mixtral: {share:.0%} of the blocks' weights get no adapter")
    assert "experts.down_proj, experts.gate_up_proj); --model.lora.experts true" in note
    assert weights_without_adapter(mixtral, LoraOptions(dropout=0, experts=True), None) is None
    quantised = weights_without_adapter(mixtral, LoraOptions(dropout=0, experts=True), "nf4")
    share = experts / (experts + router + attention)
    assert quantised == f"mixtral: {share:.0%} of the blocks' weights, the experts', are not quantised"
    shared = weights_without_adapter(tiny("deepseek_v3"), LoraOptions(), None)
    assert shared is not None
    assert "down_proj, gate_proj, up_proj get none, for peft takes these names for the experts'" in shared
    assert weights_without_adapter(tiny("gpt2"), LoraOptions(), None) is None


def test_targets_and_experts_that_cannot_be_are_refused(saved: Callable[[str], str]) -> None:
    with pytest.raises(UserError, match=r"lora.experts true: gpt2 has no experts' weights"):
        with_adapters(saved("gpt2"), experts=True)
    with pytest.raises(UserError, match=r"lora.targets gate_proj: names experts too in deepseek_v3"):
        add_adapters(tiny("deepseek_v3"), LoraOptions(targets=["gate_proj"]))
    for options, flag in (({"dropout": 0.1}, "lora.dropout 0.1"), ({"dropout": 0.0, "dora": True}, "lora.dora true")):
        with pytest.raises(UserError, match=f"--model.{flag}: adapters of experts know none"):
            add_adapters(tiny("mixtral"), LoraOptions(experts=True, **options))
    with pytest.raises(
        UserError, match=r"lora.targets c_fcc: no linear layer of that name; there are c_attn, c_fc, c_proj"
    ):
        add_adapters(tiny("gpt2"), LoraOptions(targets=["c_fcc"]))


def test_fit_and_plan_say_it(saved: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "a", "answer": "b"}\n')
    flags = [f"--model.language={saved('mixtral')}", "--model.template=chatml", "--model.lora.r=2"]
    flags += [f"--data.train.text=[{rows}]", "--trainer.accelerator=cpu", "--data.max_length=256"]
    note = "mixtral: 86% of the blocks' weights get no adapter"
    assert main(["fit", *flags, f"--out={tmp_path / 'run'}", "--trainer.enable_progress_bar=false"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmtune:")]
    assert len(told) == 1
    assert told[0].startswith(f"mmtune: note: {note}")
    assert main(["plan", *flags, f"--json={tmp_path / 'plan.json'}"]) == 0
    plan = read_json(tmp_path / "plan.json")
    assert any(one.startswith(note) for one in plan["assumed"]["notes"])
    ledger = read_json(tmp_path / "run" / "ledger.json")
    planned = next(e for e in plan["estimates"] if e["method"] == "LoRA" and "language" in e["rows"])
    assert ledger["params"] == planned["params"]
    assert ledger["flops"]["language"] == planned["flops"]["language"]


def test_layers_that_are_never_called_get_no_adapter(llama: Path, tmp_path: Path) -> None:
    language = load_language(str(save_hybrid("mamba", tmp_path / "mamba", llama)))
    assert weights_without_adapter(language, LoraOptions(), None) == (
        "mamba: dt_proj, out_proj, x_proj get no adapter, for the model's code reads these weights without calling the "
        "layers"
    )
    assert weights_without_adapter(language, LoraOptions(targets=["in_proj"]), None) is None
    both = weights_without_adapter(language, LoraOptions(), "nf4")
    assert both is not None
    assert "dt_proj, out_proj, x_proj get no adapter and are not quantised, for" in both
    with pytest.raises(UserError, match=r"lora.targets out_proj: an adapter on it would have no effect, for mamba's"):
        add_adapters(language, LoraOptions(targets=["out_proj"]))
    adapted = add_adapters(language, LoraOptions(r=2))
    assert {n.split(".")[-4] for n, p in adapted.named_parameters() if p.requires_grad} == {"in_proj"}


def test_layers_in_a_list_are_no_blocks(llama: Path, tmp_path: Path) -> None:
    language = load_language(str(save_hybrid("zamba2", tmp_path / "zamba2", llama)))
    linear = {name for name, module in language.named_modules() if is_linear(module)} - {"lm_head"}
    wanted = {name for name in linear if name.rpartition(".")[2] not in uncalled_layers(language)}
    assert any(name.rpartition(".")[2].isdigit() for name in wanted)
    adapted = add_adapters(language, LoraOptions(r=2)).get_base_model()
    assert {name.partition(".lora_A")[0] for name, _ in adapted.named_parameters() if ".lora_A" in name} == wanted


@pytest.mark.parametrize("family", ["bloom", "lfm2", "gpt2", "llama"])
def test_layers_that_are_called_are_found_to_be(family: str) -> None:
    with torch.device("meta"):
        assert uncalled_layers(AutoModelForCausalLM.from_config(AutoConfig.for_model(family))) == set()
