"""Fingerprint of all that determines a model's answers, by content: without file names, folder names or times."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import torch

from mmtune.data.encoding import tokenizer_content
from mmtune.models import saving
from mmtune.models.composed import ComposedModel
from mmtune.models.content import hash_weights

# keys of a language model's config that do not affect how it computes, or that the weights already cover
_NO_MATTER = {
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "quantization_config",
}


def fingerprint(model: ComposedModel) -> str:
    """Hash all that can change an answer: weights, configs, tokenizer, template, end tokens and image processing."""
    trained = saving.trained_state(model)
    digest = hashlib.sha256(json.dumps(_ingredients(model, set(trained)), sort_keys=True).encode())
    for name, tensor in sorted(trained.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _ingredients(model: ComposedModel, trained: set[str]) -> dict[str, Any]:
    spec, tower, template = model.spec, model.tower, model.template
    config = model.base_language.config.to_dict()
    computing = {key: value for key, value in config.items() if key not in _NO_MATTER and not key.startswith("_")}
    images = None
    if tower is not None:
        options = asdict(tower.options) | {"tower": None, "weights": None}
        images = [options, asdict(tower.shape), repr(tower.trunk), repr(model.projector)]
    return {
        "language": [computing, spec.quantise],
        "adapters": asdict(spec.lora) if spec.lora else None,
        "photos": images,
        "tokenizer": tokenizer_content(model.tokenizer),
        "template": [template.name, template.source, template.default_system, template.thinking],
        "ends": [model.end_ids(), list(model.end_texts())],
        "frozen": hash_weights((n, t) for n, t in model.state_dict().items() if n not in trained),
    }
