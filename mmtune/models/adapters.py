"""Low-rank adapters: which weights of a language model get one, and which do not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from mmtune.errors import UserError
from mmtune.models.options import LoraOptions, Quantisation


def add_adapters(language: Any, options: LoraOptions) -> Any:
    """Put trainable low-rank adapters on a language model (peft).

    Raises:
        UserError: a target matches no linear layer, or a value is out of range.
    """
    options.check()
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=adapted_layers(language, options),
        target_parameters=adapted_experts(language, options),
        use_dora=options.dora,
        use_rslora=options.rslora,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft sees by itself which layers are Conv1D, whose weights are the transpose of a linear layer's
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        return get_peft_model(language, config)


def adapted_layers(language: Any, options: LoraOptions) -> list[str]:
    """Names of the layers that get an adapter.

    Raises:
        UserError: a target matches no linear layer, or one that peft takes for the experts.
    """
    available = linear_layers(language)
    experts = _names_of_experts(language, available)
    for target in options.targets or []:
        if target not in available:
            raise UserError(
                f"--model.lora.targets {target}: no linear layer of that name; there are {', '.join(sorted(available))}"
            )
        if target in experts:
            raise UserError(
                f"--model.lora.targets {target}: names experts too in {language.config.model_type}, where peft adapts "
                "those instead; leave it out, or adapt the experts with --model.lora.experts true"
            )
    return sorted(options.targets or available - experts)


def linear_layers(language: Any) -> set[str]:
    """Names of the linear layers inside the blocks, the output layer left out: what an adapter can sit on."""
    head = language.get_output_embeddings()
    return {
        name.rpartition(".")[2] for name, module in language.named_modules() if is_linear(module) and module is not head
    }


def is_linear(module: nn.Module) -> bool:
    """Whether it is a product with a matrix and nothing else; routers that inherit from a linear layer do more."""
    return isinstance(module, nn.Linear | Conv1D) and "Router" not in type(module).__name__


def adapted_experts(language: Any, options: LoraOptions) -> list[str] | None:
    """Names of the experts' weights that get an adapter, or None.

    Raises:
        UserError: the model has none.
    """
    if not options.experts:
        return None
    found = sorted({name for name, _ in _expert_weights(language)})
    if not found:
        raise UserError(
            f"--model.lora.experts true: {language.config.model_type} has no experts' weights; leave it out"
        )
    return found


def weights_without_adapter(language: Any, options: LoraOptions, quantise: Quantisation | None) -> str | None:
    """What is to be known of a model of experts, as one line; None where each matrix of the blocks gets an adapter.

    Args:
        language: without adapters yet; it may be on the meta device.
        options: of the adapters.
        quantise: how linear layers are quantised, if they are.

    Raises:
        UserError: see `adapted_layers`.
    """
    experts = list(_expert_weights(language))
    if not experts:
        return None
    adapted = set(adapted_layers(language, options))
    shared = linear_layers(language) - adapted if options.targets is None else set()
    layers = [(name.rpartition(".")[2], module) for name, module in language.named_modules() if is_linear(module)]
    head = language.get_output_embeddings()
    with_adapter = sum(module.weight.numel() for name, module in layers if name in adapted)
    of_experts = sum(weight.numel() for _, weight in experts)
    # what is neither a word embedding, nor the output layer, nor a vector
    embedding = language.get_input_embeddings().weight
    everything = [p for p in language.parameters() if p.dim() > 1 and p is not embedding and p is not head.weight]
    total = sum(parameter.numel() for parameter in everything)
    notes = []
    if not options.experts:
        notes.append(
            f"{(total - with_adapter) / total:.0%} of the blocks' weights get no adapter: those of the experts "
            f"({', '.join(sorted({name for name, _ in experts}))}); --model.lora.experts true adapts these too"
        )
    if shared:
        notes.append(f"{', '.join(sorted(shared))} get none, for peft takes these names for the experts'")
    if quantise is not None:
        notes.append(f"{of_experts / total:.0%} of the blocks' weights, the experts', are not quantised")
    return f"{language.config.model_type}: {'; '.join(notes)}" if notes else None


def _expert_weights(language: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """The weights of all experts of a block as one tensor [experts, …, …], with the last two parts of their names."""
    for name, module in language.named_modules():
        if "Experts" in type(module).__name__:
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 3:
                    yield f"{name.rpartition('.')[2]}.{own}", parameter


def _names_of_experts(language: Any, names: set[str]) -> set[str]:
    """Those that peft takes for experts: where they were linear layers before transformers 5, also in other layers."""
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # peft before 0.19
        return set()
    config = LoraConfig(target_modules=sorted(names))
    convert_peft_config_for_transformers(config, model=language, conversions=None)
    return names - set(config.target_modules or ())
