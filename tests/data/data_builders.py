"""Small tokenizers, rows and photos for the data tests (a module of its own, so that processes can import it)."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mmtune.data.conversation import Conversation
from mmtune.data.encoding import ModelInputs, encode
from mmtune.interfaces import Turn

CHATML_JINJA = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_byte_tokenizer(*, trim_offsets: bool = False, merges: Iterable[tuple[str, str]] = ()) -> Any:
    """A byte-level tokenizer with ChatML markers and template: one token per byte but for the merges."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [left + right for left, right in merges]
    tokenizer = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", name_or_path="tiny"
    )
    wrapped.chat_template = CHATML_JINJA
    return wrapped


def fake_preprocess(image: Image.Image) -> torch.Tensor:
    """What a vision tower would do, only smaller; at module level, so that worker processes can have it."""
    pixels = np.asarray(image.resize((8, 8)), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)


def encoded_photo(shade: int = 128, kind: str = "PNG", size: int = 32) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), (shade, 255 - shade, 7)).save(stream, kind)
    return stream.getvalue()


def picture(shade: int = 9) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def said(question: str, answer: str = "That.") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


ASKED, SAID = {"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}
FROM_ASKED, FROM_SAID = {"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}
PLAIN = (Turn("user", "What?"), Turn("assistant", "That."))
ROWS: dict[str, dict[str, Any]] = {
    "LLaVA/ShareGPT": {"conversations": [FROM_ASKED, FROM_SAID]},
    "chat messages": {"messages": [ASKED, SAID]},
    "self-instruct": {"instruction": "What?", "instances": [{"input": "", "output": "That."}]},
    "Alpaca": {"instruction": "What?", "output": "That."},
    "prompt/completion": {"prompt": "What?", "completion": "That."},
    "prompt/response": {"prompt": "What?", "response": "That."},
    "question/answer": {"question": "What?", "answer": "That."},
    "question/response": {"question": "What?", "response": "That."},
    "query/response": {"query": "What?", "response": "That."},
}
SINGLE = [name for name in ROWS if name not in ("LLaVA/ShareGPT", "chat messages", "self-instruct")]


def learned(conversation: Conversation, inputs: ModelInputs) -> list[str]:
    """What is learned, a text for each run of labels."""
    example = encode(conversation, inputs, 10_000)
    texts, run = [], list[int]()
    for token, supervised in [*zip(example.input_ids.tolist(), example.supervised.tolist(), strict=True), (0, False)]:
        if supervised:
            run.append(token)
        elif run:
            texts.append(inputs.tokenizer.decode(run))
            run = []
    return texts
