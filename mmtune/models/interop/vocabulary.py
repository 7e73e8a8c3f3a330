"""Room for the image token in an exported model: transformers' LLaVA marks photos by a token, ours by none."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tokenizers import AddedToken

from mmtune.data.conversation import IMAGE_PLACEHOLDER

_MULTIPLE = 64  # what llava-hf pads the vocabulary to


def with_image_token(tokenizer: Any) -> tuple[Any, int]:
    """A copy of the tokenizer that knows `<image>`, and its id; text without photos is tokenised as before.

    Matched before the text is normalised, the token cuts it in pieces that are tokenised apart, as the released code
    and `mmtune.data.encoding` do.
    """
    own = copy.deepcopy(tokenizer)
    if IMAGE_PLACEHOLDER not in own.get_vocab():
        token = AddedToken(IMAGE_PLACEHOLDER, special=True, normalized=False)
        own.add_special_tokens({"additional_special_tokens": [token]}, replace_extra_special_tokens=False)
    own.padding_side = "left"
    if own.pad_token is None:
        own.pad_token = own.unk_token or own.eos_token
    return own, int(own.convert_tokens_to_ids(IMAGE_PLACEHOLDER))


def with_rows(weight: torch.Tensor, token: int) -> torch.Tensor:
    """An embedding, or an output layer, [vocabulary, hidden], with a row for a token.

    A free row of a padded vocabulary is taken where there is one. New rows are the mean of all: the logit of such a row
    is the mean of the others, so no new token is ever the likeliest, and greedy answers stay what they were.
    """
    rows = len(weight)
    if token < rows:
        return weight
    wanted = -(-(token + 1) // _MULTIPLE) * _MULTIPLE
    mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(wanted - rows, -1)])
