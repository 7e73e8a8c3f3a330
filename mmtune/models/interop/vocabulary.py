"""Image token in the vocabulary of an exported model: transformers' LLaVA needs one, our models have none."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tokenizers import AddedToken

from mmtune.data.conversation import IMAGE_PLACEHOLDER

_MULTIPLE = 64  # what llava-hf pads the vocabulary to


def with_image_token(tokenizer: Any) -> tuple[Any, int]:
    """Return a copy of the tokenizer with the token `<image>`, and its id; text without images gives the same tokens.

    The token is matched before the text is normalized. It cuts the text into pieces that are tokenized separately, as
    in the released code and in `mmtune.data.encoding`.
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
    """Return an embedding or an output layer [vocabulary, hidden] with a row for a token.

    A free row of a padded vocabulary is used if there is one. New rows are the mean of all rows: the logit of such a
    row is the mean of the others, so a new token is never the most likely one, and greedy answers stay the same.
    """
    rows = len(weight)
    if token < rows:
        return weight
    wanted = -(-(token + 1) // _MULTIPLE) * _MULTIPLE
    mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(wanted - rows, -1)])
