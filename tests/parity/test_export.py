"""Exports load in the tools that they are for, say the same, and come back as they went."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from families import save_family, small_config
from llava_builders import write_llava
from llava_parity import ASKED, our_logits, same_logits_and_text, theirs
from PIL import Image
from safetensors import safe_open

from mmtune.cli.main import main
from mmtune.common.errors import UserError
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.export import export, load_for_export
from mmtune.models.interop.vocabulary import with_image_token, with_rows
from mmtune.models.spec import LoraOptions, ModelSpec, VisionOptions

CONFIG = "seed_everything: 7\nmodel:\n  stage: tune\n  learning_rate: 0.0002\ndata:\n  max_length: 99\n"


@pytest.fixture(scope="module")
def clip_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of open_clip's own, 10 blocks of width 384, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = open_clip.create_model("ViT-S-32-alt", load_weights=False)
    file = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(model.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def build(llama: Path, clip_weights: Path) -> Callable[..., VisionLanguageModel]:
    def make(*, lora: LoraOptions | None = None, template: str = "chatml", **vision: Any) -> VisionLanguageModel:
        options = VisionOptions("open_clip:ViT-S-32-alt", str(clip_weights), **vision)
        model = VisionLanguageModel.assemble(ModelSpec(str(llama), options, template=template, lora=lora))
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_B" in name or name.startswith("projector."):
                torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        return model.eval()

    return make


@pytest.fixture(scope="module")
def run(build: Callable[..., VisionLanguageModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained adapters, with its records."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    model = build(lora=LoraOptions(r=4, alpha=8))
    model.save_pretrained(folder / "model")
    (folder / "config.yaml").write_text(CONFIG)
    data = {
        "sources": {"rows | of *mine* <script>.jsonl": {"text": 3, "visual": 0}},
        "fingerprints": {"rows | of *mine* <script>.jsonl": "abc123"},
    }
    (folder / "data.json").write_text(json.dumps(data))
    (folder / "ledger.json").write_text(json.dumps({"wall_s": 12.5, "flops": {"language": 2e12}, "tower_passes": 0}))
    for name, named, score in (("after", folder, 0.625), ("before", "another", 0.125)):
        (folder / name).mkdir()
        task = {"n": 8, "metric": "accuracy", "score": score, "protocol": "blind"}
        results = {"suite": "mine", "model": str(named), "tasks": {"boolq": task}}
        (folder / name / "results.json").write_text(json.dumps(results))
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"lora": LoraOptions(r=4, alpha=8)},
        {"fit": "crop", "blocks": [-1]},
        {"fit": "squash", "blocks": [-2, 1], "class_token": True},
        {"template": "vicuna_v1"},
    ],
)
def test_llava_hf_says_the_same_in_transformers(
    build: Callable[..., VisionLanguageModel], photos: list[Image.Image], tmp_path: Path, options: dict[str, Any]
) -> None:
    model = build(**options)
    asked = [our_logits(model, text, [photos[n] for n in seen]) for text, seen in ASKED]
    export(model, "llava-hf", tmp_path / "out")
    same_logits_and_text(model, tmp_path / "out", photos)
    again = VisionLanguageModel.from_pretrained(tmp_path / "out")
    assert again.spec.template == model.spec.template
    for (text, seen), before in zip(ASKED, asked, strict=True):
        after = our_logits(again, text, [photos[n] for n in seen])[:, : before.shape[1]]
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    export(again, "llava-hf", tmp_path / "second")
    for name in ("model.safetensors", "chat_template.jinja", "preprocessor_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "second"))
    assert first == second


def test_a_linear_projector_goes_there_and_back(llama: Path, clip_weights: Path, tmp_path: Path) -> None:
    options = VisionOptions("open_clip:ViT-S-32-alt", str(clip_weights))
    model = VisionLanguageModel.assemble(ModelSpec(str(llama), options, "linear", template="chatml"))
    export(model, "llava-hf", tmp_path / "out")
    llava, _ = theirs(tmp_path / "out")
    features = torch.randn(1, 4, 384)
    assert model.projector is not None
    torch.testing.assert_close(llava.model.multi_modal_projector(features), model.projector(features))
    again = VisionLanguageModel.from_pretrained(tmp_path / "out")
    assert again.spec.projector == "linear"
    assert again.projector is not None
    assert all(
        torch.equal(a, b) for a, b in zip(again.projector.parameters(), model.projector.parameters(), strict=True)
    )


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_our_own_layouts_are_read_back(run: Path, photos: list[Image.Image], tmp_path: Path, to: Any) -> None:
    assert main(["export", str(run), "--to", to, "--out", str(tmp_path / "out")]) == 0
    before, after = (VisionLanguageModel.from_pretrained(path) for path in (run, tmp_path / "out"))
    for text, seen in ASKED:
        shown = [photos[number] for number in seen]
        tolerance = {"rtol": 0, "atol": 0} if to == "peft" else {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(our_logits(after, text, shown), our_logits(before, text, shown), **tolerance)
    if to == "peft":
        assert after.fingerprint == before.fingerprint
    else:
        assert after.spec.lora is None


def test_plain_peft_loads_the_adapter(run: Path, llama: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    export(load_for_export(str(run), "peft"), "peft", tmp_path / "out")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path / "out").eval()
    model = VisionLanguageModel.from_pretrained(run)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(plain(input_ids=ids).logits, model.language(input_ids=ids).logits)


def test_dtype_and_size_of_the_files(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--dtype", "bfloat16", "--max-shard-size", "100KB"]
    assert main(["export", str(run), "--to", "llava-hf", "-o", str(out), *flags]) == 0
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        with safe_open(shard, "pt") as opened:
            kept = {opened.get_tensor(name).dtype for name in opened.keys()}  # noqa: SIM118  # no mapping
        assert kept == {torch.bfloat16}
    llava, _ = theirs(out)
    assert llava.dtype == torch.bfloat16
    again = VisionLanguageModel.from_pretrained(out)
    export(again, "llava-hf", tmp_path / "second", max_shard_size="100KB")  # auto keeps what it was
    for shard in shards:
        assert shard.read_bytes() == (tmp_path / "second" / shard.name).read_bytes()


def test_an_adapter_keeps_its_dtype(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--to", "peft", "-o", str(tmp_path / "out"), "--dtype", "bfloat16"]
    assert main(["export", str(run), *flags]) == 2
    assert "--to peft keeps what was trained as it was; leave --dtype out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_card_says_where_it_comes_from_and_nothing_in_it_acts(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--to", "llava-hf", "-o", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    for said in ("abc123", "model.learning\\_rate | 0.0002", "62.5 %", "12.5", "2e+12", "chatml", "not recorded"):
        assert said in card
    assert "12.5 %" not in card, "the evaluation of another model is not this one's"
    assert "<script>" not in card
    assert "rows \\| of \\*mine\\* \\<script\\>.jsonl" in card


def test_what_transformers_cannot_compute_is_refused_with_what_can_be_had(
    llama: Path, tower_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        "ViT": ({}, "is a VisionTransformer, and transformers' CLIPVisionModel is another network"),
        "grid": ({"grid": 2}, "pooled to a grid (2)"),
        "standardise": ({"standardise": True}, "features are standardised"),
    }
    for name, (options, reason) in cases.items():
        tower = VisionOptions("timm:test_vit", str(tower_weights), **options)
        spec = ModelSpec(str(llama), tower, template="chatml", lora=LoraOptions(r=2))
        VisionLanguageModel.assemble(spec).save_pretrained(tmp_path / name / "model")
        out = tmp_path / "out"
        assert main(["export", str(tmp_path / name), "--to", "llava-hf", "-o", str(out)]) == 2
        said = capsys.readouterr().err
        assert reason in said
        assert "use --to merged or --to peft" in said
        assert not out.exists()


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("granite", {"logits_scaling": 8.0}, "changes its logits behind the output layer"),
        ("cohere2", {"logit_scale": 0.25}, "changes its logits behind the output layer"),
        ("gemma2", {"head_dim": 16, "final_logit_softcapping": 2.0}, "changes its logits behind the output layer"),
        ("phi", {}, "has weights (lm_head.bias) for which transformers' LLaVA has no place"),
        ("gpt2", {}, "has weights (transformer.wte.weight) for which"),
        ("gpt_neox", {}, "has weights (gpt_neox.embed_in.weight) for which"),
    ],
)
def test_a_language_model_that_is_another_in_transformers_llava_is_refused(
    llama: Path, clip_weights: Path, tmp_path: Path, family: str, options: dict[str, Any], reason: str
) -> None:
    save_family(tmp_path / "language", llama, small_config(family, **options))
    vision = VisionOptions("open_clip:ViT-S-32-alt", str(clip_weights))
    spec = ModelSpec(str(tmp_path / "language"), vision, template="chatml", lora=LoraOptions(r=2))
    with pytest.raises(UserError, match=re.escape(reason) + ".*; use --to merged or --to peft"):
        export(VisionLanguageModel.assemble(spec), "llava-hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("scale", "read"), [(8.0, False), (1.0, True)])
def test_a_llava_whose_language_model_scales_its_logits_is_not_read(
    llama: Path, tmp_path: Path, scale: float, read: bool
) -> None:
    write_llava(tmp_path / "llava", llama, "granite", words={"logits_scaling": scale})
    if read:
        assert VisionLanguageModel.from_pretrained(tmp_path / "llava").fitness.plain_head
        return
    with pytest.raises(UserError, match=r"llava: GraniteForCausalLM changes its logits behind the output layer"):
        VisionLanguageModel.from_pretrained(tmp_path / "llava")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "llava"], "llava"),
        (["--to", "merged", "--max-shard-size", "many"], "--max-shard-size many: write a number"),
        (["another", "--to", "merged"], "takes one run, not 2"),
        (["--to", "peft"], "the model has no adapters; use --to llava-hf or --to merged"),
        (["--to", "llava-hf"], "the model has no vision tower; use --to merged"),
    ],
)
def test_wrong_flags(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    VisionLanguageModel.assemble(ModelSpec(str(llama), template="chatml")).save_pretrained(tmp_path / "run" / "model")
    assert main(["export", str(tmp_path / "run"), *arguments, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["export", str(run), "--to", "merged", "-o", str(tmp_path)]) == 2
    assert "name another" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_export_that_fails_leaves_nothing(
    build: Callable[..., VisionLanguageModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    monkeypatch.setattr(
        model.tokenizer, "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        export(model, "merged", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_room_for_the_image_token_changes_no_answer() -> None:
    weight = torch.randn(259, 16, generator=torch.Generator().manual_seed(0))
    grown = with_rows(weight, 259)
    assert grown.shape == (320, 16)
    assert torch.equal(grown[:259], weight)
    hidden = torch.randn(1000, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal((hidden @ grown.T).argmax(1), (hidden @ weight.T).argmax(1))
    assert with_rows(grown, 300) is grown  # a padded vocabulary has room


def test_text_without_photos_is_tokenised_as_before(sentencepiece_llama: Path) -> None:
    """And with photos in the pieces that the released code cuts it in."""
    from mmtune.data.encoding import IMAGE_TOKEN, encode_text
    from mmtune.data.rendering.templates import Rendered
    from mmtune.models.language import load_tokenizer

    tokenizer = load_tokenizer(str(sentencepiece_llama))
    with_token, image = with_image_token(tokenizer)
    for text in ("hello  world\n</s>USER: x", "USER: <image>\nWhat is it? ASSISTANT:", "<image> or <image>?"):
        ours, _ = encode_text(Rendered(text, ()), tokenizer)
        assert with_token(text)["input_ids"] == [image if token == IMAGE_TOKEN else token for token in ours.tolist()]


def test_a_llava_of_transformers_is_tuned_scored_and_exported(
    llava_hf: Callable[..., Path], photos: list[Image.Image], tmp_path: Path
) -> None:
    rows = [{"instruction": f"say {n}", "input": "", "output": "yes " * (n + 1)} for n in range(8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    options = {
        "model.base": llava_hf("qwen3"),
        "model.template": "chatml",
        "model.lora.r": 4,
        "data.train.text": json.dumps([str(tmp_path / "rows.json")]),
        "data.max_length": 128,
        "data.pack_tokens": 256,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 2,
        "trainer.enable_progress_bar": "false",
        "out": tmp_path / "run",
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["fit", *flags]) == 0
    assert json.loads((tmp_path / "run" / "ledger.json").read_text())["tower_passes"] == 0
    assert main(["export", str(tmp_path / "run"), "--to", "llava-hf", "-o", str(tmp_path / "out")]) == 0
    model = VisionLanguageModel.from_pretrained(tmp_path / "run")
    same_logits_and_text(model, tmp_path / "out", photos)
    assert VisionLanguageModel.from_pretrained(tmp_path / "out").spec.template == "chatml"
