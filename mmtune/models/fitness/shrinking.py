"""Configs of small copies of language models, for a quick trial that covers every kind of layer.

Widths and numbers of heads are divided by the same divisor, so that a width that is the product of heads and head size
remains so; head sizes are kept. Layers that are like another one are left out. Numbers of experts and the vocabulary
are limited. Lengths at which a model changes its computation (windows, chunks, the original length of rotary
frequencies) are made shorter than the documents of a trial, and soft caps low enough to have an effect. Values
already below these limits are kept, except for the lengths of rotary frequencies.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

LONGEST = 26  # tokens of the longest document of a trial
THRESHOLD = 12  # tokens; length at which a model changes its computation
VOCABULARY = 128
FIRST_SPECIAL = 100  # ids from here on belong to special tokens, which no document of a trial contains
_LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers", "num_blocks",
    "encoder_layers", "num_encoder_layers", "depth",
)  # fmt: skip
_HEADS = re.compile(
    r"(^|_)(n_head|heads|heads_per_layer)$|^(mamba_)?n_?groups$|^mamba_n_?groups$|^(num_query|o)_groups$"
)
_WIDTH = re.compile(
    r"(hidden_size|hidden_dim|d_model|n_embd|emb_dim|embed_dim|embedding_dim|embedding_size|intermediate_size|ffn_dim|d_ff|dff"
    r"|dim_ff|d_inner|lru_width|word_embed_proj_dim|mlp_dim|feed_forward_size|mamba_d_ssm|n_inner|time_step_rank"
    r"|intermediate_size_mlp|embedding_size_per_layer|hidden_size_per_layer_input|projection_dim)$"
)
_EXPERTS = re.compile(r"^(moe_)?(num|n)_(routed_|local_)?experts$|^zero_expert_num$")
_CHOSEN = re.compile(r"^(num_experts_per_tok|num_experts_per_token|moe_k|moe_top_?k|top_k_experts)$")
_WINDOW = re.compile(
    r"^(sliding_window|sliding_window_size|attention_window_size|window_size|attention_chunk_size|local_attention"
    r"|chunk_size|block_size|index_topk|index_topk_blocks|index_block_size|rel_extent|floor_scale|mem_len"
    r"|heavily_compressed_attention|max_inference_chunksize)$"
)
_POSITIONS = re.compile(
    r"^(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_target_positions|context_length|model_max_length)$"
)
_VOCABULARIES = re.compile(r"^(vocab_size|decoder_vocab_size|unpadded_vocab_size|vocab_size_per_layer_input)$")
_SPECIAL = re.compile(r"_token_ids?$|_token_index$|^eo._token|^bo._token")
_PERIOD = re.compile(r"period|step$|interval|every|offset|start_index|pattern$|_layers$|_per_attn")
_SOFT_CAP = re.compile(r"soft_?cap")
_FIRST_LAYERS = ("first_k_dense_replace", "num_dense_layers")
Settings = dict[str, Any]


def shrunk(config: Any, *, heads: int | None, turns: int | None) -> Any:
    """Return a config of a small model, with the same class and flags.

    Args:
        config: config of a language model of transformers; it is not changed.
        heads: number of attention heads to which the widths are scaled down; None keeps the widths.
        turns: number of layers kept of each kind, or, where the config lists no kinds, of periods of layers; None keeps
            all layers.
    """
    settings = copy.deepcopy(config.to_dict())
    for name in ("quantization_config", "_name_or_path", "transformers_version", "dtype", "torch_dtype"):
        settings.pop(name, None)
    for part in _parts(settings):
        if turns is not None:
            _cut_layers(part, turns)
        if heads is not None:
            _narrow(part, heads)
        _shorten(part)
    return type(config).from_dict(settings)


def _parts(settings: Settings) -> Iterator[Settings]:
    """Yield the settings of a config, and those of the models nested in it."""
    yield settings
    for name, value in settings.items():
        if isinstance(value, dict) and "model_type" in value and name != "attribute_map":
            yield from _parts(value)


# ---------------------------------------------------------------- layers


def _cut_layers(part: Settings, turns: int) -> None:
    for name in _LAYERS:
        depth = part.get(name)
        if not isinstance(depth, int) or depth <= 2:
            continue
        kept = _kept(part, depth, turns)
        shared = part.get("num_kv_shared_layers")
        for key, value in part.items():
            if not isinstance(value, list):
                if key in _FIRST_LAYERS and isinstance(value, int):
                    part[key] = sum(i < value for i in kept)
            elif _are_layers(value, depth):
                part[key] = [kept.index(i) for i in value if i in kept]
            elif len(value) == depth:
                part[key] = [value[i] for i in kept]
        if isinstance(special := part.get("per_layer_config"), dict):
            places = {layer: place for place, layer in enumerate(kept)}
            part["per_layer_config"] = {places[int(i)]: own for i, own in special.items() if int(i) in places}
        if shared:
            part["num_kv_shared_layers"] = sum(i >= depth - shared for i in kept)
        part[name] = len(kept)


def _kept(part: Settings, depth: int, turns: int) -> list[int]:
    """Return the indices of the kept layers.

    They are the first `turns` of each kind, at least two in all; where the config lists no kinds of layers, `turns`
    periods (such as an interval between layers of a kind) and one layer.
    """
    lists = {key: value for key, value in part.items() if isinstance(value, list) and value}
    each = [value for value in lists.values() if len(value) == depth and not _are_layers(value, depth)]
    special = part.get("per_layer_config")
    own = {int(i): repr(value) for i, value in special.items()} if isinstance(special, dict) else {}
    some = [set(value) for value in lists.values() if _are_layers(value, depth)]
    firsts = [part[key] for key in _FIRST_LAYERS if isinstance(part.get(key), int)]
    shared = part.get("num_kv_shared_layers") or 0
    if each or some or firsts or own:
        kinds: dict[Any, list[int]] = {}
        for i in range(depth):
            kind = (
                tuple(repr(value[i]) for value in each),
                tuple(i in value for value in some),
                tuple(i < first for first in firsts),
                i >= depth - shared,
                own.get(i),
            )
            kinds.setdefault(kind, []).append(i)
        kept = sorted(i for alike in kinds.values() for i in alike[:turns])
        if len(kept) < 2:
            kept = sorted({*kept, 0, 1})
        return kept
    lengths = [
        value for key, value in part.items()
        if key not in _LAYERS and _PERIOD.search(key) and isinstance(value, int) and 1 <= value <= 16
    ]  # fmt: skip
    return list(range(min(depth, turns * max([1, *lengths]) + 1)))


def _are_layers(value: Any, depth: int) -> bool:
    """Return whether a list holds indices of layers: integers below `depth` in ascending order."""
    if not (isinstance(value, list) and value and all(type(i) is int for i in value)):
        return False
    return value == sorted(set(value)) and value[-1] < depth and (len(value) > 1 or depth > 1)


# ---------------------------------------------------------------- widths


def _narrow(part: Settings, heads: int) -> None:
    divisor = _divisor(part, heads)
    for key, value in list(part.items()):
        if _HEADS.search(key):
            part[key] = _each(value, lambda n: max(1, n // divisor))
        elif _WIDTH.search(key):
            part[key] = _each(value, lambda n: _width(n, divisor))
        elif _EXPERTS.search(key):
            part[key] = _each(value, lambda n: min(n, 8))
        elif _CHOSEN.search(key):
            part[key] = _each(value, lambda n: min(n, 2))
    for key in ("n_group", "num_expert_group"):
        if isinstance(part.get(key), int):
            part[key] = min(part[key], 2)
            if isinstance(part.get("topk_group"), int):
                part["topk_group"] = min(part["topk_group"], part[key])


def _divisor(part: Settings, heads: int) -> int:
    """Return the divisor of widths that leaves `heads` heads, or the next larger number of heads that is possible.

    If no number from `heads` to one below the model's own is possible, one head is left. In a model without heads, the
    divisor leaves a width of 32 per head.
    """
    for key in ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"):
        count = part.get(key)
        if isinstance(count, int) and count > 0:
            return next((count // left for left in range(heads, count) if count % left == 0), count)
    for key in ("hidden_size", "d_model", "n_embd"):
        if isinstance(part.get(key), int):
            return max(1, int(part[key]) // (32 * heads))
    return 1


def _width(width: int, divisor: int) -> int:
    """Divide a width, rounded up to a multiple of 16 unless the quotient is an integer multiple of 4 (for kernels)."""
    return width // divisor if width % divisor == 0 and width // divisor % 4 == 0 else 16 * -(-width // (16 * divisor))


def _each(value: Any, change: Callable[[int], int]) -> Any:
    if isinstance(value, list):
        return [_each(one, change) for one in value]
    return change(value) if type(value) is int and value > 0 else value


# ---------------------------------------------------------------- lengths, vocabulary


def _shorten(part: Settings) -> None:
    special = FIRST_SPECIAL
    for key, value in list(part.items()):
        if type(value) is int:
            if _VOCABULARIES.search(key):
                part[key] = min(value, VOCABULARY)
            elif _WINDOW.search(key):
                part[key] = min(value, THRESHOLD - 4)
            elif _POSITIONS.search(key):
                part[key] = min(value, 4 * LONGEST)
            elif _SPECIAL.search(key) and value >= 10:
                part[key], special = min(special, VOCABULARY - 1), special + 1
        elif isinstance(value, list) and _SPECIAL.search(key):
            part[key] = [min(special, VOCABULARY - 1) if i >= 10 else i for i in value]
        if _SOFT_CAP.search(key) and isinstance(value, (int, float)) and value > 0:
            part[key] = min(float(value), 2.0)
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(part.get(key), dict):
            _shorten_rope(part, part[key])


def _shorten_rope(part: Settings, rope: Settings) -> None:
    kind = rope.get("rope_type", rope.get("type"))
    if kind == "dynamic":  # its original length is max_position_embeddings
        part["max_position_embeddings"] = THRESHOLD
    for holder in (rope, part):
        if isinstance(holder.get("original_max_position_embeddings"), int):
            holder["original_max_position_embeddings"] = THRESHOLD
    for inner in rope.values():
        if isinstance(inner, dict):
            _shorten_rope(part, inner)
