"""Low-rank adapters: which weights of a language model get one, and which do not."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from mmtune.common.errors import UserError
from mmtune.models.spec import LoraOptions, Quantisation

_READ = re.compile(r"\bself\.(\w+)\.weight\b(?![.\[])")  # a slice of the weight, or its dtype, is no product


def add_adapters(language: Any, options: LoraOptions) -> Any:
    """Add trainable low-rank adapters to a language model (peft).

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
    """Return the names of the layers that get an adapter.

    Raises:
        UserError: a target matches no linear layer, one that is never called, or one that peft takes for the experts.
    """
    available, uncalled = linear_layers(language), uncalled_layers(language)
    experts = _names_of_experts(language, available)
    for target in options.targets or []:
        if target not in available:
            raise UserError(
                f"--model.lora.targets {target}: no linear layer of that name; there are {', '.join(sorted(available))}"
            )
        if target.rpartition(".")[2] in uncalled:
            raise UserError(
                f"--model.lora.targets {target}: an adapter on it would have no effect, for "
                f"{language.config.model_type}'s code reads the layer's weights without calling it; leave it out"
            )
        if target in experts:
            raise UserError(
                f"--model.lora.targets {target}: names experts too in {language.config.model_type}, where peft adapts "
                "those instead; leave it out, or adapt the experts with --model.lora.experts true"
            )
    called = {name for name in available if name.rpartition(".")[2] not in uncalled}
    return sorted(options.targets or called - experts)


def linear_layers(language: Any) -> set[str]:
    """Return the names of all linear layers except the output layer: the layers that can get an adapter."""
    return set(_short_names(language).values())


def _short_names(language: Any) -> dict[str, str]:
    """Map the full name of each linear layer, except the output layer, to its shortest suffix that peft can use.

    Such a suffix matches no module of another kind: peft would match `0` with the first layer of every list, and so
    with a block.
    """
    head, modules = language.get_output_embeddings(), dict(language.named_modules())
    others = {end for name, module in modules.items() if not is_linear(module) for end in _ends(name)}
    return {
        name: next((end for end in _ends(name) if end not in others), name)
        for name, module in modules.items()
        if is_linear(module) and module is not head
    }


def _ends(name: str) -> list[str]:
    """Return the suffixes of a dotted name, the shortest first."""
    parts = name.split(".")
    return [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]


def uncalled_layers(language: Any) -> set[str]:
    """Return the names of linear layers whose weights the model's code reads without a call, as for Mamba's kernels.

    Neither an adapter nor quantized weights would be computed correctly there. Which weights are read depends on the
    installed kernels, so the source code of the layer's owner is searched for `self.out_proj.weight` and the like.
    """
    owners: dict[type, set[str]] = {}
    for module in language.modules():
        layers = {name for name, child in module.named_children() if is_linear(child)}
        if layers and type(module).__module__.startswith("transformers."):
            owners[type(module)] = owners.get(type(module), set()) | layers
    return {name for owner, layers in owners.items() for name in layers & set(_READ.findall(inspect.getsource(owner)))}


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer and nothing more; routers that inherit from one compute more."""
    return isinstance(module, nn.Linear | Conv1D) and "Router" not in type(module).__name__


def adapted_experts(language: Any, options: LoraOptions) -> list[str] | None:
    """Return the names of the experts' weights that get an adapter; None if experts get none.

    Raises:
        UserError: the model has no experts.
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
    """Describe in one line the weights of the blocks without an adapter or quantization; None if there are none.

    Args:
        language: language model without adapters yet; it may be on the meta device.
        options: options of the adapters.
        quantise: quantization of the linear layers, if any.

    Raises:
        UserError: see `adapted_layers`.
    """
    notes = list(filter(None, [_of_experts(language, options, quantise), _of_uncalled(language, options, quantise)]))
    return f"{language.config.model_type}: {'; '.join(notes)}" if notes else None


def _of_uncalled(language: Any, options: LoraOptions, quantise: Quantisation | None) -> str:
    uncalled = ", ".join(sorted(uncalled_layers(language)))
    if not uncalled or (options.targets is not None and quantise is None):
        return ""
    lacking = "" if options.targets is not None else "get no adapter"
    both = " and " if lacking and quantise else ""
    lacking += f"{both}are not quantised" if quantise else ""
    return f"{uncalled} {lacking}, for the model's code reads these weights without calling the layers"


def _of_experts(language: Any, options: LoraOptions, quantise: Quantisation | None) -> str:
    experts = list(_expert_weights(language))
    if not experts:
        return ""
    adapted = set(adapted_layers(language, options))
    shared = linear_layers(language) - adapted - uncalled_layers(language) if options.targets is None else set()
    layers, head = _short_names(language), language.get_output_embeddings()
    with_adapter = sum(language.get_submodule(name).weight.numel() for name in layers if layers[name] in adapted)
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
    return "; ".join(notes)


def _expert_weights(language: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the last two parts of the name, and the tensor [experts, …, …], of each weight of a block's experts."""
    for name, module in language.named_modules():
        if "Experts" in type(module).__name__:
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 3:
                    yield f"{name.rpartition('.')[2]}.{own}", parameter


def _names_of_experts(language: Any, names: set[str]) -> set[str]:
    """Return the names that peft converts to experts, also where they name other layers.

    This happens in models whose experts were linear layers before transformers 5.
    """
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # peft before 0.19
        return set()
    config = LoraConfig(target_modules=sorted(names))
    convert_peft_config_for_transformers(config, model=language, conversions=None)
    return names - set(config.target_modules or ())
