"""Fixed date for chat templates that would otherwise read the clock.

Templates get today's date from `strftime_now` (Llama 3.2's, GPT-OSS'), or take one in `date_string` (Llama 3.1's). A
few lines of jinja before the template define both, so that a run and its exports write the same date on every day.
"""

from __future__ import annotations

import datetime

from mmtune.common.errors import UserError

_DIRECTIVES = "aAdbBmyYHIMSpjUWfwuGV"
_NAMES = ("strftime_now", "date_string")
_BEGIN, _END = "{#- template date ", "{#- end of template date -#}\n"


def check_date(text: str, flag: str) -> str:
    """Check a date and return it in ISO format, 2026-01-31.

    Raises:
        UserError: the text is not a date; the message begins with `flag`.
    """
    try:
        return datetime.datetime.strptime(text, "%Y-%m-%d").date().isoformat()
    except ValueError:
        raise UserError(f"{flag} {text}: give a day as YEAR-MONTH-DAY, 2026-01-31") from None


def today() -> str:
    """Return today's date in ISO format."""
    return datetime.date.today().isoformat()


def reads_clock(source: str) -> bool:
    """Return whether a chat template may write the date of the day on which it is used."""
    return "strftime_now" in source and not split_date(source)[0]


def dated(source: str, date: str | None) -> str:
    """Return a chat template that writes this date (at midnight); unchanged if it writes no date, or for None."""
    if date is None or not any(name in source for name in _NAMES):
        return source
    moment = datetime.datetime.fromisoformat(date)
    forms = [*_DIRECTIVES, *(f"-{one}" for one in "dmHIMSj")]
    replaced = "".join(f" | replace('%{form}', {_quoted(moment.strftime(f'%{form}'))})" for form in forms)
    return (
        f"{_BEGIN}{date} -#}}\n"
        f"{{%- macro strftime_now(format) -%}}{{{{- format{replaced} | replace('%%', '%') -}}}}{{%- endmacro -%}}\n"
        f"{{%- set date_string = {_quoted(moment.strftime('%d %b %Y'))} -%}}\n"
        f"{_END}"
    ) + split_date(source)[1]


def split_date(source: str) -> tuple[str, str]:
    """Split a template into the lines that fix its date ("" if there are none) and the rest."""
    end = source.find(_END) + len(_END) if source.startswith(_BEGIN) and _END in source else 0
    return source[:end], source[end:]


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
