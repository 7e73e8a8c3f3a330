"""Exact fast tokenizer from a Llama-style sentencepiece model (`tokenizer.model`).

Vicuna 1.5 and other Llama-2 descendants are published with `tokenizer.model` alone. transformers 5 converts
it with another merge order (runs of spaces come out differently) and without the start token, so its ids
are not those the models were trained with. This construction gives sentencepiece's ids, with character
offsets besides: merges by piece score, longer left part first where scores tie.
tests/data/test_sentencepiece.py compares it with LLaVA's own ids.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtune.common.errors import UserError

_SPACE = "▁"


def build_tokenizer(path: Path, *, legacy: bool, name: str = "") -> Any:
    """Build a transformers fast tokenizer with the ids of the sentencepiece model `path`, with the start token.

    Args:
        path: the `tokenizer.model` file.
        legacy: as in `tokenizer_config.json`; True begins the text after every special token with a space
            piece, False only the text itself.
        name: the name of the tokenizer in messages; empty for the folder of the file.

    Raises:
        UserError: the file is not a byte-pair sentencepiece model.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: not a sentencepiece model: {error}") from None
    return _built(content, legacy, str(path), name or str(path.parent))


def check_settings(tokenizer: Any, settings: Mapping[str, Any], added: Mapping[str, int], reference: str) -> None:
    """Refuse tokenizer settings that differ from the sentencepiece model of a folder, and would be ignored.

    Args:
        tokenizer: the tokenizer from `build_tokenizer`.
        settings: the content of `tokenizer_config.json`.
        added: the content of `added_tokens.json`, ids by token.
        reference: the name of the tokenizer in the message.

    Raises:
        UserError: the settings have tokens that the model does not have, other start, end or unknown tokens, or other
            rules for adding start and end tokens.
    """
    known = tokenizer.get_vocab()
    listed = {_content(token): int(number) for number, token in settings.get("added_tokens_decoder", {}).items()}
    fault = next((f"the token {t!r}" for t, number in {**added, **listed}.items() if known.get(t) != number), None)
    for name in ("bos_token", "eos_token", "unk_token"):
        if fault is None and _content(settings.get(name) or getattr(tokenizer, name)) != getattr(tokenizer, name):
            fault = f"{name} {_content(settings[name])!r}"
    for name, expected in (("add_bos_token", True), ("add_eos_token", False)):
        if fault is None and settings.get(name) is (not expected):
            fault = f"{name} {str(not expected).lower()}"
    if fault is not None:
        raise UserError(
            f"{reference}: the tokenizer has {fault}, which is not read beside a tokenizer.model; write it as "
            "tokenizer.json with transformers (AutoTokenizer.from_pretrained(…).save_pretrained(…))"
        )


def _content(token: Any) -> str:
    """Return the text of a token, which files store as text or as an object with options."""
    return str(token["content"] if isinstance(token, Mapping) else token)


@functools.lru_cache(maxsize=4)
def _built(content: bytes, legacy: bool, path: str, name: str) -> Any:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: not a sentencepiece model: {error}") from None
    protocol: Any = sentencepiece_model_pb2  # protobuf makes its classes at run time, unseen by mypy
    model = protocol.ModelProto.FromString(pieces.serialized_model_proto())
    if model.trainer_spec.model_type != model.trainer_spec.BPE or model.normalizer_spec.precompiled_charsmap:
        raise UserError(f"{path}: a sentencepiece model, but not of Llama's kind (byte pairs, text taken as it is)")
    vocabulary = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    unknown, start, end = (pieces.id_to_piece(i) for i in (pieces.unk_id(), pieces.bos_id(), pieces.eos_id()))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(pieces, vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    specials = "|".join(re.escape(token) for token in (unknown, start, end))
    begin = Regex(rf"\A(?!{specials})")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(begin, _SPACE), normalizers.Replace(" ", _SPACE)])
    # a special token matched before normalising splits the text; each part begins with its own space piece
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=not legacy, special=True) for token in (unknown, start, end)]
    )
    _decode_like_sentencepiece(tokenizer)
    _begin_with(tokenizer, start, pieces.bos_id())
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unknown, bos_token=start, eos_token=end, pad_token=unknown
    )
    wrapped.name_or_path = name
    return wrapped


def _merges(pieces: Any, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Return all pairs of pieces that form a piece, the best score first."""
    scores = {
        piece: pieces.get_score(i)
        for piece, i in vocabulary.items()
        if not (pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i) or pieces.is_unused(i))
    }
    merges = [
        ((score, cut), piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    merges.sort(key=lambda merge: merge[0], reverse=True)
    return [(left, right) for _, left, right in merges]


def _decode_like_sentencepiece(tokenizer: Any) -> None:
    from tokenizers import decoders

    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )


def _begin_with(tokenizer: Any, start: str, start_id: int) -> None:
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=[(start, start_id)]
    )
