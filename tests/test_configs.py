"""Every shipped config parses, and those of the recipe make the model that the paper describes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_lines import parse_training

from mmtune.common.files import resource_folder, write_json
from mmtune.common.layers import read_layered
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.saving import FORMAT

CONFIGS = sorted(p.stem for p in resource_folder("configs").glob("*.yaml"))
STRATEGIES = sorted(p.stem for p in resource_folder("configs").glob("strategies/*.yaml"))
LOGGERS = sorted(p.stem for p in resource_folder("configs").glob("loggers/*.yaml"))
RECIPES = [name for name in CONFIGS if name.startswith(("llama2_7b_", "vicuna_7b_"))]
GOLDENS: dict[str, Any] = json.loads(Path(__file__).with_name("config_goldens.json").read_text())
TUNING = [name for name in RECIPES if not name.endswith("_align")]
LANGUAGE, TOWER, PROJECTOR, ADAPTERS = 6_738_415_616, 304_293_888, 20_979_712, 319_815_680
LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
HUB_IDS = {"llama2_7b": "meta-llama/Llama-2-7b-hf", "vicuna_7b": "lmsys/vicuna-7b-v1.5"}
TEXT_FRACTIONS = {"": 1.0, "88_12": 0.88, "50_50": 0.5, "visual": 0.0}


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config that Llama 2 7B and Vicuna 7B v1.5 share, and a tokenizer of their kind."""
    import mistral_common
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("seven-billion")
    LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    data = Path(mistral_common.__file__).parent / "data"
    shutil.copy(data / "tokenizer.model.v1", folder / "tokenizer.model")
    write_json(folder / "tokenizer_config.json", {"legacy": True})
    return folder


@pytest.fixture
def build(seven_billion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """From a recipe's name to its parsed config, Lightning module and data module, without weights.

    Where the recipe starts from an alignment run, that run's `mmtune.json` is written first, from its recipe.
    """
    monkeypatch.chdir(tmp_path)

    def built(name: str) -> tuple[Any, Any, Any]:
        if not name.endswith("_align"):
            aligned = f"{family(name)}_align"
            spec = built(aligned)[1].spec.to_dict()
            write_json(Path("runs") / aligned / "model" / "mmtune.json", {"format": FORMAT, "spec": spec})
        argv = ["fit", "--config", name]
        if name.endswith("_align"):
            argv += ["--model.language", str(seven_billion)]
        cli = parse_training(argv)
        config = cli.config
        wanted = config.fit.clone()
        config.fit.trainer.strategy = "auto"  # the recipe's may need a library of its own to be instantiated
        instantiated = cli.parser.instantiate_classes(config).fit
        return wanted, instantiated.model, instantiated.data

    return built


def family(name: str) -> str:
    return "_".join(name.split("_")[:2])


def count(module: Any, *, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def test_the_recipes_are_complete() -> None:
    assert set(RECIPES) == {
        *("llama2_7b_align", "vicuna_7b_align"),
        *("llama2_7b_lora", "llama2_7b_lora_88_12", "llama2_7b_lora_visual"),
        *("llama2_7b_full", "llama2_7b_full_88_12", "llama2_7b_full_visual"),
        *("vicuna_7b_lora", "vicuna_7b_lora_50_50", "vicuna_7b_lora_visual"),
        *("vicuna_7b_full", "vicuna_7b_full_50_50", "vicuna_7b_full_visual"),
    }


@pytest.mark.parametrize("name", GOLDENS)
def test_a_config_stands_for_the_same_settings_as_ever(name: str) -> None:
    assert read_layered(resource_folder("configs") / f"{name}.yaml", "configs") == GOLDENS[name]


def test_every_config_has_goldens() -> None:
    assert set(GOLDENS) == {
        *CONFIGS,
        *(f"strategies/{name}" for name in STRATEGIES),
        *(f"loggers/{n}" for n in LOGGERS),
    }


@pytest.mark.parametrize("name", TUNING)
def test_a_tuning_recipe_is_a_model_an_objective_and_data(name: str) -> None:
    text = (resource_folder("configs") / f"{name}.yaml").read_text()
    settings = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(settings) == 2


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_begins_with_its_command_and_parses(name: str) -> None:
    text = (resource_folder("configs") / f"{name}.yaml").read_text()
    command = f"mmtune fit --config {name}"
    assert text.splitlines()[0] == f"# {command}"
    config = parse_training(command.split()[1:]).config.fit
    assert config.out.startswith("runs/")


@pytest.mark.parametrize("recipe", ["vicuna_7b_lora", "vicuna_7b_full"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_is_laid_over_a_recipe(name: str, recipe: str) -> None:
    text = (resource_folder("configs") / "strategies" / f"{name}.yaml").read_text()
    assert text.splitlines()[0].startswith("# mmtune fit --config ")
    assert text.splitlines()[0].endswith(f" --config {name}")
    alone = parse_training(["fit", "--config", recipe]).config.fit
    config = parse_training(["fit", "--config", recipe, "--config", name, "--trainer.num_nodes", "2"]).config.fit
    strategy = config.trainer.strategy
    called = strategy if isinstance(strategy, str) else strategy.class_path.rpartition(".")[2].lower()
    assert called.startswith({"fsdp": "modelparallel"}.get(name, name))
    assert config.trainer.devices * config.trainer.accumulate_grad_batches * config.data.pack_rows == 64
    assert config.trainer.num_nodes == 2
    assert (config.out, config.model, config.data) == (alone.out, alone.model, alone.data)


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_is_laid_over_a_recipe(name: str) -> None:
    text = (resource_folder("configs") / "loggers" / f"{name}.yaml").read_text()
    command = f"mmtune fit --config quickstart --config {name}"
    assert text.splitlines()[0] == f"# {command}"
    alone = parse_training(["fit", "--config", "quickstart"]).config.fit
    config = parse_training(command.split()[1:]).config.fit
    assert config.trainer.logger.class_path.rpartition(".")[2].lower() == f"{name}logger"
    config.trainer.logger = None
    assert all(config[key] == alone[key] for key in ("out", "model", "data", "trainer"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_where_it_is_from_and_what_it_needs(name: str) -> None:
    text = (resource_folder("configs") / f"{name}.yaml").read_text()
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert "arXiv 2411.10557" in comment
    assert ("NOT the paper's" in comment) == ("_lora" in name)
    assert "hf download" in comment
    assert f"{8 if '_lora' not in name else 1} GPU" in comment
    assert "rows = 256" in comment if name.endswith("_align") else "rows = 64" in comment


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_papers_settings(name: str, build: Any) -> None:
    config, module, data = build(name)
    align, lora = name.endswith("_align"), "_lora" in name
    trainer = config.trainer

    assert config.out == f"runs/{name}"
    assert config.seed_everything == module.spec.seed == data.mixture.seed == 42
    assert trainer.devices * trainer.accumulate_grad_batches * data.pack_rows == (256 if align else 64)
    assert (trainer.precision, trainer.max_epochs) == ("bf16-mixed", 1)
    assert module.dtype_of_frozen is (torch.bfloat16 if align or lora else torch.float32)
    assert module.learning_rate == (1e-3 if align else 2e-4 if lora else 2e-5)
    assert module.projector_learning_rate == 2e-5
    assert (module.warmup, module.weight_decay) == (0.03, 0.0)
    assert data.max_length == 2048
    assert data.bad_rows.policy == "skip"
    assert module.inputs.template.name == ("plain" if align else "vicuna_v1")
    assert module.spec.template == "vicuna_v1"
    assert module.inputs.tokens_per_image == 576
    assert (module.spec.vision.tower, module.spec.vision.weights, module.spec.vision.blocks) == (
        "open_clip:ViT-L-14-336-quickgelu",
        "openai",
        [-2],
    )
    if not align:
        # a pack has room for its rows even where all are of full length: no batch is smaller than it says
        assert data.budget == data.pack_rows * data.max_length


@pytest.mark.parametrize("name", [n for n in RECIPES if n.endswith("_align")])
def test_an_alignment_starts_from_the_published_model(name: str) -> None:
    config = parse_training(["fit", "--config", name]).config.fit
    assert config.model.language == HUB_IDS[family(name)]
    assert config.data.train.visual == ["data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"]
    assert config.data.train.text == []


@pytest.mark.parametrize("name", TUNING)
def test_a_recipe_draws_its_mixture(name: str, build: Any) -> None:
    config, _, data = build(name)
    fraction = TEXT_FRACTIONS["_".join(name.split("_")[3:])]
    assert config.model.base == f"runs/{family(name)}_align"
    assert data.mixture.text_fraction == fraction
    if fraction == 1:
        assert (data.mixture.text, data.mixture.visual) == (["data/MLAN/MLAN_80k.json"], [])
    else:
        (file,) = data.mixture.visual
        assert file in ("data/MLAN/MLAN_v_88l_80k.json", "data/MLAN/MLAN_v_50l_80k.json")
        assert ("88l" in file) == (fraction == 0.88)
        assert data.mixture.image_root == "data/MLAN/images_mlan_v"


@pytest.fixture(scope="module")
def assemble() -> Any:
    """Put a module's model together without weights; once for all recipes that ask for the very same one."""
    made: dict[str, VisionLanguageModel] = {}

    def assembled(module: Any) -> VisionLanguageModel:
        key = json.dumps([module.stage, str(module.dtype_of_frozen), module.spec.to_dict()])
        if key not in made:
            made[key] = VisionLanguageModel.assemble(
                module.spec, dtype=module.dtype_of_frozen, meta=True, tokenizer=module.tokenizer
            )
            made[key].set_stage(module.stage)
        return made[key]

    return assembled


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_what_it_says(name: str, build: Any, assemble: Any) -> None:
    _, module, _ = build(name)
    model = assemble(module)
    lora = "_lora" in name

    assert all(p.is_meta for p in model.parameters())
    assert count(model.language) == LANGUAGE + ADAPTERS * lora
    assert count(model.tower) == TOWER
    assert count(model.projector) == PROJECTOR
    assert (model.tower.shape.num_tokens, model.tower.shape.width) == (576, 1024)

    trained = {part: count(getattr(model, part), trained=True) for part in ("tower", "projector", "language")}
    expected = 0 if name.endswith("_align") else ADAPTERS if lora else LANGUAGE
    assert trained == {"tower": 0, "projector": PROJECTOR, "language": expected}
    assert model.spec.language_trained == ("_full" in name)
    if lora:
        options = model.language.peft_config["default"]
        assert options.target_modules == LINEAR
        assert (options.r, options.lora_alpha) == (128, 256)
        adapted = {
            name.partition(".lora_")[0].rpartition(".")[2]
            for name, parameter in model.language.named_parameters()
            if parameter.requires_grad
        }
        assert adapted == LINEAR
