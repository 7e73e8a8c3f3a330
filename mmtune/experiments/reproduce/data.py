"""Questions about images, generated from lists of the objects in them."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmtune.common.errors import UserError

NUMBERS = ("none", "one", "two", "three", "four")
_PRESENCE = (
    "Is there {thing} in the photo? Answer yes or no.",
    "Can {thing} be seen here? Yes or no?",
    'Does the photo show {thing}? Reply with "yes" or "no".',
)
_COUNTING = (
    "How many of these things are in the photo: {listed}?",
    "Of these, how many can be seen: {listed}? Answer with a number word.",
)
_NAMING = ("What is there in the photo?", "Name the things in this photo.", "Which objects can be seen?")
_CHOICE = ("Which of these is in the photo? Answer with the letter.", "What can be seen here? Give the letter.")


def object_questions(file: Path, seed: int = 0) -> list[dict[str, Any]]:
    """Generate questions in LLaVA's format about the presence, count, names and choice of objects in images.

    Questions about presence have "yes" and "no" equally often. Absent objects are drawn by their frequency in other
    images, so that the answer cannot be guessed from the object's name. Images without objects are skipped.

    Args:
        file: JSON Lines with `image` and `objects`, the names of all kinds of objects in the image.
        seed: seed of the random choices.

    Raises:
        UserError: the file cannot be read, or a row lacks one of the two keys.
    """
    draw = random.Random(seed)
    images = list(_images(file))
    frequency = Counter(thing for _, objects in images for thing in objects)
    rows = []
    for image, objects in images:
        others = {thing: count for thing, count in frequency.items() if thing not in objects}
        pairs = [pair for ask in (_presence, _counting, _naming, _choice) for pair in ask(objects, others, draw)]
        rows += [
            {
                "id": f"{Path(image).stem}-{number}",
                "image": image,
                "conversations": [
                    {"from": "human", "value": f"<image>\n{question}"},
                    {"from": "gpt", "value": answer},
                ],
            }
            for number, (question, answer) in enumerate(pairs)
        ]
    draw.shuffle(rows)
    return rows


Pair = tuple[str, str]


def _images(file: Path) -> Iterator[tuple[str, list[str]]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}; --data-root names the folder it is looked for in") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            image, objects = row["image"], list(dict.fromkeys(row["objects"]))
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file}, row {number}: needs 'image' and 'objects', a list of names") from None
        if objects:
            yield str(image), [str(name) for name in objects]


def _absent(others: dict[str, int], count: int, draw: random.Random) -> list[str]:
    """Draw distinct objects, weighted by their frequency (Efraimidis & Spirakis 2006: by the key u^(1/weight))."""
    return sorted(others, key=lambda thing: draw.random() ** (1 / others[thing]), reverse=True)[:count]


def _presence(objects: list[str], others: dict[str, int], draw: random.Random) -> Iterator[Pair]:
    asked = draw.sample(objects, min(2, len(objects)))
    missing = _absent(others, len(asked), draw)
    for things, answer in ((asked[: len(missing)], "yes"), (missing, "no")):
        for thing in things:
            yield draw.choice(_PRESENCE).format(thing=_with_article(thing)), answer


def _counting(objects: list[str], others: dict[str, int], draw: random.Random) -> Iterator[Pair]:
    there = draw.randint(0, min(3, len(objects)))
    listed = draw.sample(objects, there) + _absent(others, draw.randint(1, 4 - there), draw)
    draw.shuffle(listed)
    yield draw.choice(_COUNTING).format(listed=", ".join(listed)), NUMBERS[there]


def _naming(objects: list[str], others: dict[str, int], draw: random.Random) -> Iterator[Pair]:
    *first, last = objects
    yield draw.choice(_NAMING), f"{', '.join(first)} and {last}" if first else last


def _choice(objects: list[str], others: dict[str, int], draw: random.Random) -> Iterator[Pair]:
    right, options = draw.choice(objects), _absent(others, 3, draw)
    options.insert(draw.randint(0, len(options)), right)
    letters = "ABCD"[: len(options)]
    listed = "\n".join(f"{letter}: {option}" for letter, option in zip(letters, options, strict=True))
    yield f"{draw.choice(_CHOICE)}\n{listed}", letters[options.index(right)]


def _with_article(thing: str) -> str:
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
