"""The date that an evaluation's prompts bear, where the chat template writes one."""

from __future__ import annotations

from mmtune.data.rendering.template_date import check_date, today
from mmtune.evaluation.run.database import Database
from mmtune.interfaces import Generator

_NOTE = "template_date"


def fix_date(model: Generator, given: str | None, database: Database) -> str | None:
    """Have a model write one date in all prompts, however many days its evaluation takes.

    Args:
        model: a model of mmtune's; others are left alone.
        given: what it is to write; None takes what the model is recorded with, else the day the evaluation began.
        database: of the evaluation, which knows that day.

    Returns:
        The date, or None where the template writes none.
    """
    from mmtune.generation.generator import VisionLanguageModel

    if not isinstance(model, VisionLanguageModel):
        return None
    if given is not None:
        model.fix_date(check_date(given, "--template-date"))
    elif model.template.reads_clock:
        model.fix_date(database.noted(_NOTE) or today())
    date = model.spec.template_date
    if date is not None and database.noted(_NOTE) != date:
        database.note(_NOTE, date)
    return date
