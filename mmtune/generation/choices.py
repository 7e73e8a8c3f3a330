"""Tokenization of choices that continue a prompt: the border between the two is kept, and no character is lost."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from mmtune.data.conversation import IMAGE_PLACEHOLDER, MARK_AS_TEXT

_ANCHOR = "\ue000"  # of the private use area: no vocabulary joins it with what follows
_CONTEXT = 16  # tokens of the prompt that a choice is decoded with


def split_spaces(prompt: str) -> tuple[str, str]:
    """Split the spaces off the end of a prompt.

    Tokenizers join a space with the word that follows it, so these spaces are scored with each choice, as
    lm-evaluation-harness does. Line breaks stay: chat templates end in one.
    """
    context = prompt.rstrip(" ")
    return context, prompt[len(context) :]


class ChoiceTokenizer:
    """Tokenizer of the choices that may follow one prompt.

    Prompt and choice are tokenized together, and the tokens after those of the prompt are the choice's. If the tokens
    of both together do not begin with the prompt's own (the tokenizer joins characters of both sides in one token), or
    decode to another text, the choice is tokenized alone, without the space that sentencepiece puts before a text.
    """

    def __init__(self, tokenizer: Any, prompt: str) -> None:
        """
        Args:
            tokenizer: a fast tokenizer of transformers.
            prompt: the rendered prompt, `<image>` in place of each image; only the text after the last one is used.
        """
        self._tokenizer = tokenizer
        last = prompt.rpartition(IMAGE_PLACEHOLDER)[2]  # texts between images are tokenized separately
        self._text = last.replace(MARK_AS_TEXT, IMAGE_PLACEHOLDER)
        self._ids = self._tokenise(self._text)

    def ids(self, choice: str) -> list[int]:
        """Return the token ids of a choice; `<image>` in it is text. Empty if the tokenizer drops all of it."""
        text, before, ids = self._text, self._ids, list[int]()
        for part in self._parts(choice):
            ids += self._continuing(text, [*before, *ids], part)
            text += part
        return ids

    def _parts(self, choice: str) -> list[str]:
        """Split the choice where the tokenizer would read `<image>` in its text as the image token."""
        if IMAGE_PLACEHOLDER not in choice or IMAGE_PLACEHOLDER not in self._tokenizer.get_added_vocab():
            return [choice]
        first, *others = choice.split(IMAGE_PLACEHOLDER)
        begin, end = IMAGE_PLACEHOLDER[:-1], IMAGE_PLACEHOLDER[-1:]
        parts = [first + begin, *(end + other + begin for other in others)]
        return [*parts[:-1], parts[-1].removesuffix(begin)]

    def _continuing(self, text: str, before: Sequence[int], choice: str) -> list[int]:
        """Return the tokens of a choice after a text with the tokens `before`."""
        candidates = []
        for context, known in ((text, before), ("", ()), (_ANCHOR, self._tokenise(_ANCHOR))):
            ids = self._tokenise(context + choice)
            if ids[: len(known)] == list(known):
                candidates.append(ids[len(known) :])
                if self._says(before, candidates[-1], choice):
                    return candidates[-1]
        return candidates[0]  # the tokenizer changes the text, for example to lower case

    def _says(self, before: Sequence[int], ids: Sequence[int], choice: str) -> bool:
        """Return whether the tokens `ids` after `before` decode to the choice, up to Unicode normalization (NFKC)."""
        context = before[-_CONTEXT:]
        said, wanted = self._decode([*context, *ids]), self._decode(context) + choice
        return said == wanted or unicodedata.normalize("NFKC", said) == unicodedata.normalize("NFKC", wanted)

    def _tokenise(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text
