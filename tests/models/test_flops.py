from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmtune.data.collate import PackedBatch
from mmtune.data.encoding import Example
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.cost import flops
from mmtune.models.cost.flops import FlopsCounter, StepFlops, tower_flops
from mmtune.models.spec import LoraOptions, ModelSpec
from mmtune.training.objectives.token_loss import supervised_loss
from tests.models.families import save_hybrid

Build = Callable[..., VisionLanguageModel]
Make = Callable[..., Example]
Pack = Callable[[VisionLanguageModel, list[Example]], PackedBatch]
ALL = LoraOptions(r=4, dropout=0.0)


@pytest.mark.parametrize(
    ("vision", "lora", "stage", "kinds", "extra"),
    [
        pytest.param(False, ALL, "tune", "tt", "", id="adapters on text"),
        pytest.param(False, None, "tune", "tt", "", id="in full on text"),
        pytest.param(True, ALL, "tune", "tv", "", id="adapters on text and photos"),
        pytest.param(True, ALL, "tune", "tt", "", id="adapters on text, with a projector"),
        pytest.param(True, None, "tune", "vv", "", id="in full on photos"),
        pytest.param(True, None, "align", "vv", "", id="align on photos"),
        pytest.param(True, None, "align", "tt", "", id="align on text: nothing to learn"),
        pytest.param(True, ALL, "tune", "vt", "frozen projector", id="adapters, projector frozen"),
        pytest.param(True, None, "tune", "vt", "frozen projector", id="in full, projector frozen"),
        pytest.param(
            False,
            LoraOptions(r=4, dropout=0.0, targets=["o_proj"]),
            "tune",
            "tt",
            "",
            id="adapters on o_proj",
        ),
        pytest.param(
            False,
            LoraOptions(r=4, dropout=0.0, targets=["down_proj"]),
            "tune",
            "t",
            "",
            id="adapters on down_proj",
        ),
        pytest.param(
            False,
            LoraOptions(r=4, dropout=0.0, targets=["q_proj", "k_proj", "v_proj", "up_proj"]),
            "tune",
            "t",
            "",
            id="four targets",
        ),
        pytest.param(False, LoraOptions(r=4, dropout=0.1, dora=True), "tune", "tt", "", id="DoRA"),
        pytest.param(True, LoraOptions(r=4, dropout=0.0, dora=True), "tune", "tv", "", id="DoRA without dropout"),
        pytest.param(False, ALL, "tune", "tt", "chunks", id="loss in chunks"),
        pytest.param(False, None, "tune", "tt", "chunks", id="in full, loss in chunks"),
        pytest.param(True, ALL, "tune", "tv", "checkpointing", id="gradient checkpointing"),
    ],
)
def test_the_formula_is_what_torch_counts(
    build: Build, example: Make, packed: Pack, vision: bool, lora: Any, stage: Any, kinds: str, extra: str
) -> None:
    model = build(vision=vision, lora=lora)
    model.set_stage(stage)
    if extra == "frozen projector":
        assert model.projector is not None
        model.projector.requires_grad_(False)
    if extra == "checkpointing":
        model.base_language.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    examples = [
        example(model, "some question", "an answer " * 4, (i,) if k == "v" else ()) for i, k in enumerate(kinds)
    ]
    batch = packed(model, examples)
    before = model.usage["tower_passes"]
    # the plain kernel: it computes 4 products backward, where fused ones compute the scores again
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss = supervised_loss(model(batch), batch.targets, model.output_layer, chunk=7 if extra == "chunks" else 4096)
        if loss.requires_grad:
            loss.backward()
    flops = FlopsCounter(model).step(
        documents=batch.document_lengths,
        supervised=batch.supervised_tokens,
        image_tokens=batch.image_tokens,
        images=model.usage["tower_passes"] - before,
        head_twice=extra == "chunks",
    )
    counted = counter.get_total_flops()
    # recomputation stops at the last tensor that is needed again
    tolerance = 1e-9
    assert flops.language + flops.projector + flops.tower == pytest.approx(counted, rel=tolerance)


def test_the_towers_count_is_exact(seeing_model: VisionLanguageModel) -> None:
    assert seeing_model.tower is not None
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        seeing_model.tower(torch.zeros(3, 3, 160, 160, device=seeing_model.device))
    assert 3 * tower_flops(seeing_model) == counter.get_total_flops() > 0


def test_the_recipes_tower_by_hand() -> None:
    """CLIP ViT-L/14-336: 577 tokens, width 1,024, 23 blocks that are computed, patches of 14 x 14."""
    from mmtune.models.spec import VisionOptions

    class Described:
        spec = ModelSpec("none", VisionOptions())

    width, tokens = 1024, 577
    patches = 2 * 576 * 3 * 14 * 14 * width
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    assert tower_flops(Described()) == pytest.approx(patches + 23 * block, rel=1e-3)  # type: ignore[arg-type]


# of layers whose states are computed in chunks, filled up; beside them those whose documents have a cost of their own
HYBRIDS: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 64},
    "falcon_h1": {
        "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_ssm": 32, "mamba_d_state": 8, "mamba_n_groups": 1,
        "mamba_chunk_size": 32, "head_dim": 8,
    },
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"], "head_dim": 8, "linear_num_key_heads": 2,
        "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 2,
        "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    },
    "minimax": {
        "layer_types": ["linear_attention", "full_attention"], "head_dim": 8, "num_local_experts": 2,
        "num_experts_per_tok": 1, "block_size": 32,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba": {"state_size": 4},
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "lora"),
    [(family, ALL if family in ("mamba2", "minimax") else None) for family in HYBRIDS],
    ids=HYBRIDS,
)
def test_states_are_counted_as_torch_counts_them(
    family: str, lora: LoraOptions | None, llama: Path, tmp_path: Path, example: Make, packed: Pack
) -> None:
    save_hybrid(family, tmp_path, llama, hidden_size=32, intermediate_size=48, expand=2, **HYBRIDS[family])
    model = VisionLanguageModel.assemble(ModelSpec(str(tmp_path), template="chatml", lora=lora))
    if model.base_language.config._experts_implementation is not None:
        model.base_language.config._experts_implementation = "eager"  # grouped products are not counted by torch
    model.set_stage("tune")
    model.train()
    batch = packed(model, [example(model, "some question", "answer " * times) for times in (1, 9, 24)])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        supervised_loss(model(batch), batch.targets, model.output_layer).backward()
    flops = FlopsCounter(model).step(
        documents=batch.document_lengths, supervised=batch.supervised_tokens, image_tokens=0, images=0
    )
    # no gradient flows into the state before the first chunk, which MiniMax computes beside the others': it is counted
    within = 0.01 if family == "minimax" else 0
    assert flops.language == pytest.approx(counter.get_total_flops(), rel=within, abs=0)


def test_what_was_counted_is_kept_for_the_next_run(
    llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path))

    def steps() -> tuple[StepFlops, int]:
        counted: list[Any] = []
        monkeypatch.setattr(flops, "_KNOWN", {})
        count = flops.blocks_cost
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flops, "blocks_cost", lambda *a, **k: counted.append(1) or count(*a, **k))
            model = VisionLanguageModel.assemble(ModelSpec(str(llama), template="chatml"), meta=True)
            model.set_stage("tune")
            found = FlopsCounter(model).step(documents=[5, 9], supervised=4, image_tokens=0, images=0)
        return found, len(counted)

    first, counted = steps()
    assert counted == 1
    assert steps() == (first, 0)
    (file,) = (tmp_path / "operations").glob("*.json")
    file.write_text("{}")  # damaged: counted again
    assert steps() == (first, 1)
