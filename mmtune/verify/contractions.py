"""English contractions and their forms without an apostrophe."""

from __future__ import annotations

import itertools

# only those whose form without apostrophe is no word: `were`, `well`, `shell`, `wed`, `ill`, `its` are words
_WRITTEN = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd've
    he's how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've
    mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
    something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've
    we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
    why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're
    you've
"""


def _without_apostrophes(written: str) -> set[str]:
    """Return all forms that lack at least one apostrophe."""
    pieces = written.split("'")
    marks = itertools.product(("'", ""), repeat=len(pieces) - 1)
    forms = {pieces[0] + "".join(m + p for m, p in zip(some, pieces[1:], strict=True)) for some in marks}
    return forms - {written}


CONTRACTIONS: dict[str, str] = {bare: written for written in _WRITTEN.split() for bare in _without_apostrophes(written)}
"""The contraction meant by a form that lacks an apostrophe: `dont` is `don't`, `couldnt've` is `couldn't've`."""
