"""`mmtune export`: conversion of a trained model to the formats of other tools."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmtune.analysis.card import model_card
from mmtune.cli.shared.flags import build_parser, parse
from mmtune.common.errors import UserError
from mmtune.common.files import claim_folder
from mmtune.common.text import visible


@dataclass
class ExportOptions:
    """Write a trained model for other tools, with a model card.

    Attributes:
        run: the run, or any other model that mmtune reads.
        to: `llava-hf`: a folder that transformers loads with no code of mmtune (CLIP towers only); `peft`: the adapter
            in peft's layout, and the projector; `merged`: mmtune's own layout, the adapters merged into the language
            model.
        out: the folder to write (-o for short); it must be empty or not there.
        language: the language model that adapters or a projector belong to, in place of the one that they name (which
            may be a path on another machine).
        template: the template that renders conversations (vicuna_v1, llama_2, chatml, tokenizer), in place of the
            recorded one. Folders of the released LLaVA code record none: vicuna_v1 is used.
        template_date: the date (2026-01-31) that the template writes in place of today's date, instead of the recorded
            one.
        dtype: type of the weights; `auto` is that of the base's files. `peft` holds only the trained weights, in the
            type that they have.
        max_shard_size: maximum size of one file of weights, as 500MB or 5GB.
    """

    run: list[str]
    to: Literal["llava-hf", "peft", "merged"]
    out: str
    language: str | None = None
    template: str | None = None
    template_date: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_shard_size: str = "5GB"

    def __post_init__(self) -> None:
        if len(self.run) != 1:
            raise UserError(f"mmtune export takes one run, not {len(self.run)}: {', '.join(self.run)}")
        if self.to == "peft" and self.dtype != "auto":
            raise UserError(f"--dtype {self.dtype}: --to peft keeps what was trained as it was; leave --dtype out")
        if not re.fullmatch(r"[1-9]\d*[KMG]B", self.max_shard_size):
            raise UserError(f"--max-shard-size {self.max_shard_size}: write a number and KB, MB or GB, as 5GB")


def main(argv: list[str]) -> int:
    """Load the model, write it, and print its folder and size; return the exit status 0.

    Raises:
        UserError: there is no such model, the format cannot hold it, or the folder cannot be written.
    """
    arguments = ["--out" if argument == "-o" else argument for argument in argv]
    options = parse(build_parser("export", ExportOptions, positional="run"), ExportOptions, arguments)
    (reference,), folder = options.run, Path(options.out)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"--out {folder}: is there and not an empty folder; name another")
    if folder.is_mount():
        raise UserError(f"--out {folder}: is where a disk is mounted, which cannot be replaced; name a folder in it")
    claim_folder(folder.absolute().parent, "--out")

    from mmtune.models.export import export, load_for_export
    from mmtune.models.saving import read_spec

    other = {"language": options.language, "template": options.template, "template_date": options.template_date}
    card = model_card(reference, read_spec(reference, **other).to_dict(), options.to)
    model = load_for_export(reference, options.to, **other)
    export(model, options.to, folder, dtype=options.dtype, max_shard_size=options.max_shard_size, card=card)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(visible(f"Exported {reference} as {options.to} to {folder}/ ({size / 1e6:,.1f} MB)"))
    return 0
