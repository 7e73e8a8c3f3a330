"""Model information that the data needs to prepare batches."""

from __future__ import annotations

from typing import Any

from mmtune.data.encoding import ModelInputs
from mmtune.data.rendering.templates import get_template
from mmtune.models.language import embedding_rows
from mmtune.models.spec import ModelSpec
from mmtune.models.vision import preprocessing, tower_shape


def model_inputs(spec: ModelSpec, tokenizer: Any) -> ModelInputs:
    """Return the model information that the data needs, without loading weights."""
    template, rows = get_template(spec.template, tokenizer, spec.template_date), embedding_rows(spec.language)
    if spec.vision is None:
        return ModelInputs(tokenizer, template, embedding_rows=rows)
    shape = tower_shape(spec.vision)
    look = preprocessing(spec.vision, shape)
    return ModelInputs(tokenizer, template, shape.num_tokens, look, embedding_rows=rows)
