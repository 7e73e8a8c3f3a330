"""Thinking before answering: the thought first, to its end, then the answer that follows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmtune.data.conversation import IMAGE_PLACEHOLDER
from mmtune.data.rendering.templates import THOUGHT_END, join_primer
from mmtune.models.decoding.answers import Response

Continue = Callable[[Sequence[int], Sequence[str]], list[str]]
"""Gives what follows each text. The numbers are those of the prompts that the texts begin with."""


def think_first(prompts: Sequence[str], response_prefix: str, *, think: Continue, answer: Continue) -> list[str]:
    """Let every prompt be thought about, and then answered as if the thought stood in it.

    So the response_prefix begins the answer and not the thought, and what ends an answer does not end a thought.

    Args:
        prompts: rendered, up to where a thought begins.
        response_prefix: how the answer begins.
        think: gives thoughts; one that is over ends with `</think>`.
        answer: gives answers.

    Returns:
        For each prompt the thought, an empty line and the answer without its response prefix; of a thought that is not
        over, as much as there is.
    """
    responses = think(range(len(prompts)), prompts)
    over = [number for number, thought in enumerate(responses) if thought.endswith(THOUGHT_END)]
    written = {number: f"{responses[number]}\n\n" for number in over}
    # a mark that the model wrote is no place for a photo
    thoughts = [written[number].replace(IMAGE_PLACEHOLDER, "image") for number in over]
    texts = [
        join_primer(prompts[number] + thought, response_prefix) for number, thought in zip(over, thoughts, strict=True)
    ]
    for number, said in zip(over, answer(over, texts), strict=True):
        text = written[number] + said
        responses[number] = Response(text, said.finish_reason) if isinstance(said, Response) else text
    return responses
