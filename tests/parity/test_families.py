"""Every family of causal language models gives transformers' own figures, or is refused in one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import families_table
import pytest
import torch
from families import Side, save_family, small_config
from transformers import AutoConfig, LlamaForCausalLM

from mmtune.cli.main import main
from mmtune.common.errors import UserError
from mmtune.models.fitness.check import fitness_of

pytestmark = pytest.mark.near_ties  # random weights; `Side.answers` leaves out what follows one

LONG = {"short_factor": [1.0] * 8, "long_factor": [1.5 + i for i in range(8)]}
# family, options, how it is computed
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "scales": ("granite", {"logits_scaling": 8.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}, "packed"),
    "a scale of logits": ("cohere", {"logit_scale": 0.2}, "packed"),
    "soft caps": ("gemma2", {"head_dim": 16, "final_logit_softcapping": 2.0, "sliding_window": 16}, "one by one"),
    "windows between": (
        "gemma3_text",
        {"head_dim": 16, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
        "packed",
    ),
    "windows": ("mistral", {"sliding_window": 16, "head_dim": 16}, "packed"),
    "windows from a layer on": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
        "packed",
    ),
    "frequencies that grow": (
        "llama",
        {"max_position_embeddings": 40, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
        "one by one",
    ),
    "frequencies of long texts": (
        "phi3",
        {
            "original_max_position_embeddings": 60,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "original_max_position_embeddings": 60,
                **LONG,
            },
        },
        "one by one",
    ),
    "convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"]}, "one by one"),
    "places learnt, Conv1D": (
        "gpt2",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
        "packed",
    ),
    "places learnt, with an offset": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}, "packed"),
    "slopes": ("falcon", {"alibi": True, "ffn_hidden_size": 96}, "one by one"),
    "states": ("mamba", {"num_hidden_layers": 2, "state_size": 4}, "one by one"),
    "states beside attention": (
        "falcon_h1",
        {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_d_state": 8, "mamba_n_groups": 1},
        "one by one",
    ),
    "a mask of its own": ("stablelm", {}, "one by one"),
    "experts": ("mixtral", {"num_local_experts": 4, "output_router_logits": True}, "packed"),
    "sinks": ("gpt_oss", {"num_local_experts": 4, "head_dim": 16, "sliding_window": 16}, "one by one"),
}


@pytest.fixture(scope="module", params=FAMILIES)
def side(request: pytest.FixtureRequest, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Side:
    model_type, options, way = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("family") / model_type
    save_family(folder, llama, small_config(model_type, **options))
    found = Side(folder)
    assert found.ours.fitness.way == way, found.ours.fitness.reason
    return found


def test_the_loss_is_transformers_own(side: Side) -> None:
    with torch.no_grad():
        ours, own = side.losses()
    assert float(ours) == pytest.approx(float(own), rel=1e-5)


def test_gradients_are_transformers_own(side: Side) -> None:
    ours, own = side.gradients()
    assert ours.keys() == own.keys()
    most = max(float(gradient.abs().max()) for gradient in own.values())
    for name, gradient in own.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-4 * most, msg=name)


def test_log_likelihoods_are_transformers_own(side: Side) -> None:
    ours, own = side.likelihoods(["yes", "no, never", "perhaps it is"])
    for found, expected in zip(ours, own, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


def test_greedy_text_is_transformers_own(side: Side) -> None:
    answers = side.answers()
    for ours, own in answers:
        assert ours.startswith(own)
    assert sum(map(len, (own for _, own in answers))) >= 8


def test_the_page_names_every_family() -> None:
    assert families_table.listed().keys() == families_table.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", families_table.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_a_family_is_computed_as_the_page_says(model_type: str) -> None:
    assert families_table.outcome(model_type)[0] == families_table.listed()[model_type]


REFUSED = {
    "tokens after it": ("bert", {}, "depends on the tokens after it"),
    "half of another model": ("bart", {"d_model": 64, "decoder_layers": 2}, "not the cross entropy of the next tokens"),
    "both halves": ("t5", {}, "transformers has no causal language model of this kind"),
    "an encoder": ("electra", {"embedding_size": 64}, "depends on the tokens after it"),
}


@pytest.mark.parametrize(("model_type", "options", "problem"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("command", ["fit", "eval", "plan"])
def test_what_cannot_be_is_refused_before_data_is_read(
    model_type: str,
    options: dict[str, Any],
    problem: str,
    command: str,
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / model_type
    if model_type == "t5":
        folder.mkdir()
        AutoConfig.for_model("t5").save_pretrained(folder)
        for file in llama.glob("*token*"):
            shutil.copy(file, folder)
    else:
        save_family(folder, llama, small_config(model_type, **options))
    given = {
        "fit": ["--model.language", str(folder), "--data.train.text", '["no.jsonl"]', "--out", str(tmp_path / "run")],
        "plan": ["--model.language", str(folder), "--data.train.text", '["no.jsonl"]'],
        "eval": [
            "--model",
            str(folder),
            "--suite",
            "mlan9",
            "--tasks",
            "boolq",
            "--data-root",
            str(tmp_path / "no"),
            "--out",
            str(tmp_path / "scores"),
        ],
    }[command]
    assert main([command, *given]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert problem in said
    assert str(folder) in said
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize("failing", ["forward", "generate"])
def test_a_lack_of_memory_is_no_verdict(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever in the trial it comes: it is said, and the model is tried again."""
    config = small_config("llama", rms_norm_eps=1e-5 if failing == "forward" else 2e-5)
    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, failing, out_of_memory)
        with pytest.raises(UserError, match="out of memory while a small copy"):
            fitness_of(config, "a model")
    assert fitness_of(config, "a model").packed


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
