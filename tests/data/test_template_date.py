"""Chat templates that write a date write the one that they are told."""

from __future__ import annotations

import datetime

import pytest
from chat_templates import FAMILIES, carrying

from mmtune.common.errors import UserError
from mmtune.data.rendering.template_date import check_date, dated, reads_clock, split_date
from mmtune.data.rendering.templates import get_template
from mmtune.interfaces import Turn
from mmtune.models.interop.chat_templates import jinja_template

CHATML = FAMILIES["chatml, other eos"].jinja
CLOCK = "Today: {{ strftime_now('%d %b %Y') }}\n" + CHATML
GIVEN = (
    "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}Today: {{ date_string }}\n"
    + CHATML
)
ASKED = [Turn("user", "Hi")]


def prompt(jinja: str, date: str | None) -> str:
    return get_template("tokenizer", carrying(jinja), date).prompt(ASKED)


@pytest.mark.parametrize("jinja", [CLOCK, GIVEN])
def test_the_date_is_the_one_that_is_told(jinja: str) -> None:
    assert prompt(jinja, "2026-01-05").startswith("Today: 05 Jan 2026\n")
    exported = jinja_template("tokenizer", carrying(jinja), "2026-01-05")
    assert prompt(exported, None).startswith("Today: 05 Jan 2026\n")
    assert prompt(exported, "2027-02-06").startswith("Today: 06 Feb 2027\n")
    again = jinja_template("tokenizer", carrying(exported))
    assert prompt(again, None).startswith("Today: 05 Jan 2026\n")


def test_untold_a_template_does_as_transformers_has_it() -> None:
    assert prompt(CLOCK, None).startswith(f"Today: {datetime.datetime.now():%d %b %Y}\n")
    assert prompt(GIVEN, None).startswith("Today: 26 Jul 2024\n")
    assert [reads_clock(source) for source in (CLOCK, GIVEN, CHATML, dated(CLOCK, "2026-01-05"))] == [
        True,
        False,
        False,
        False,
    ]


def test_a_template_without_a_date_stays_as_it_is() -> None:
    assert dated(CHATML, "2026-01-05") == CHATML
    assert split_date(dated(CLOCK, "2026-01-05"))[1] == CLOCK


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%A, %-d. %B %y", "%H:%M:%S %p", "%j 100%%", "it's"])
def test_every_form_of_a_date_is_what_strftime_makes(form: str) -> None:
    source = f'{{{{ strftime_now("{form}") }}}}|' + CHATML
    assert prompt(source, "2026-01-05").partition("|")[0] == datetime.datetime(2026, 1, 5).strftime(form)


@pytest.mark.parametrize("text", ["tomorrow", "2026-02-30", "05.01.2026", ""])
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^--template-date .*: give a day as YEAR-MONTH-DAY"):
        check_date(text, "--template-date")
