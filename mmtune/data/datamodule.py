"""Lightning data module: reads files, tokenizes and packs their rows, and creates the loaders."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from mmtune.common.errors import RowError, UserError
from mmtune.common.files import locate, sha256_file
from mmtune.data.collate import PackedBatch
from mmtune.data.conversation import Conversation, ImageCheck
from mmtune.data.encoding import Example, ModelInputs, Remarks, Tokens, as_example
from mmtune.data.example_store import Examples, ExampleStore
from mmtune.data.holdout import count_seen, hold_out
from mmtune.data.images import ImageSource
from mmtune.data.loader import EpochOrder, PackDataset, PackLoader
from mmtune.data.mixture import Mixture, composition
from mmtune.data.packing import plan_packs
from mmtune.data.sources.readers import BadRows, OnBadRow, read_conversations
from mmtune.data.token_store import cached_tokens


class InstructionData(pl.LightningDataModule):
    """Instructions, with and without photos, packed for training.

    Args:
        train: the training set; see its own options.
        validation: files or hub ids to measure the loss on.
        validation_fraction: the share of the training set to hold out instead; rows about the same photo, and texts
            that are the same, stay together.
        max_length: tokens a row may have; a longer one is a bad row.
        truncate: cut the end off a longer row instead, and count it; what it has left must hold part of an answer.
        pack_tokens: tokens a pack may hold; None takes max_length.
        pack_rows: rows a pack may hold; None fills it by tokens alone.
        on_bad_row: `error` stops at the first row that cannot be used, `skip` leaves them out and lists them.
        check_images: decode every photo before training, so that a damaged one is known at once.
        cache_tokens: keep the tokens of rows on disk (below $MMTUNE_CACHE), so that later runs need not make them.
        num_workers: processes that prepare batches; 0 prepares them in the training process.
        inputs: tokenizer, template and image settings of the model; the command line fills it in.
    """

    def __init__(
        self,
        train: Mixture,
        validation: list[str] | None = None,
        validation_fraction: float = 0.0,
        max_length: int = 2048,
        truncate: bool = False,
        pack_tokens: int | None = None,
        pack_rows: int | None = None,
        on_bad_row: OnBadRow = "error",
        check_images: bool = True,
        cache_tokens: bool = True,
        num_workers: int = 0,
        inputs: ModelInputs | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= validation_fraction < 1:
            raise UserError(f"--data.validation_fraction {validation_fraction}: must lie in [0, 1)")
        if validation and validation_fraction:
            raise UserError("--data.validation and --data.validation_fraction exclude each other; give one")
        if max_length < 1:
            raise UserError(f"--data.max_length {max_length}: must be at least 1")
        if num_workers < 0:
            raise UserError(f"--data.num_workers {num_workers}: must be at least 0")
        self.budget = max_length if pack_tokens is None else pack_tokens
        if self.budget < max_length:
            raise UserError(
                f"--data.pack_tokens {pack_tokens} is below --data.max_length {max_length}; a row would not fit"
            )
        if pack_rows is not None and pack_rows < 1:
            raise UserError(f"--data.pack_rows {pack_rows}: must be at least 1")
        self.mixture, self.validation, self.validation_fraction = train, validation or [], validation_fraction
        self.max_length, self.truncate, self.pack_rows = max_length, truncate, pack_rows
        self.bad_rows = BadRows(on_bad_row)
        self.check_images, self.cache_tokens, self.num_workers = check_images, cache_tokens, num_workers
        self.inputs = inputs
        self.record: dict[str, Any] = {}
        self.remarks = Remarks()
        self._image_check = ImageCheck()
        self._digests: dict[ImageSource, bytes] = {}  # SHA-256 of image files
        self._train: PackDataset | None = None
        self._validation: PackDataset | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read, tokenize and pack all data once; stage `validate` reads only the validation files, if any are given.

        Raises:
            UserError: data that cannot be used; see the readers.
        """
        if self._train or self._validation:
            return
        if stage == "validate" and not (self.validation or self.validation_fraction):
            raise UserError("nothing to measure the loss on; give --data.validation or --data.validation_fraction")
        training = stage != "validate" or not self.validation
        assert self.inputs is not None, "InstructionData needs `inputs` (VisionLanguageModel.inputs())"
        store = ExampleStore()
        with cached_tokens(self.inputs, use=self.cache_tokens) as tokens, self._progress() as advance:

            def take(conversation: Conversation) -> int | None:
                advance()
                example = self._encoded(conversation, tokens)
                return None if example is None else store.add(example, conversation)

            columns = self.inputs.value_columns
            drawn = self.mixture.draw(self.bad_rows, take, columns) if training else []
            train, validation = hold_out(drawn, store, self.validation_fraction, self.mixture.seed)
            for source in self.validation:
                rows = read_conversations(
                    source, image_root=self.mixture.image_root, bad_rows=self.bad_rows, value_columns=columns
                )
                validation += (n for n in map(take, rows) if n is not None)
        seen = count_seen(validation, train, store) if self.validation and training else 0
        self._say_what_was_found(seen, len(validation))
        if training:
            self._train = self._packed(Examples(store, train), "training", self.mixture.seed)
        if validation or self.validation or self.validation_fraction:
            self._validation = self._packed(Examples(store, validation), "validation", 0)
        if training:
            self.record = self._describe(composition(map(store.kind, train)), len(validation), seen)

    def state_dict(self) -> dict[str, Any]:
        """Return the fingerprint and the counts of the training packs, for the checkpoint."""
        return {"packs": self._fingerprint(), "measures": self._measures()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the training packs are those of the checkpoint.

        Without training packs (a run that only measures a loss), nothing is checked.

        Raises:
            UserError: the packs are not those of the checkpoint.
        """
        if self._train is None:
            return
        if state_dict["packs"] != self._fingerprint():
            then = state_dict.get("measures", {})
            changed = [f"{k} {then[k]} then and {v} now" for k, v in self._measures().items() if then.get(k, v) != v]
            raise UserError(
                "the run to resume was trained on other rows, or with other --data options or another template "
                f"({', '.join(changed) or 'as many rows and tokens, but not the same'}); give what it began with, or "
                "another --out"
            )

    def train_dataloader(self) -> PackLoader:
        """Return the loader of the training packs, in a new order every epoch.

        Raises:
            UserError: the validation interval of the trainer is longer than an epoch.
        """
        assert self._train is not None, "setup() runs first"
        loader = self._loader(self._train, shuffle=True)
        if self.trainer is not None and self.trainer.check_val_every_n_epoch is not None:
            interval = self.trainer.val_check_interval
            if isinstance(interval, int) and interval > len(loader):
                raise UserError(
                    f"--trainer.val_check_interval {interval}: an epoch has {len(loader)} packs; lower it, or count "
                    "across epochs with --trainer.check_val_every_n_epoch null"
                )
        return loader

    def val_dataloader(self) -> PackLoader | list[Any]:
        """Return the loader of the validation packs, in a fixed order; an empty list without a validation set."""
        return self._loader(self._validation, shuffle=False) if self._validation else []

    def transfer_batch_to_device(self, batch: PackedBatch, device: torch.device, dataloader_idx: int) -> PackedBatch:
        """Copy a batch to the device; to a GPU, while the host goes on."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def images(self) -> dict[ImageSource, str]:
        """Return every image with a row that shows it, the images of the training set first."""
        sets = [dataset for dataset in (self._train, self._validation) if dataset is not None]
        return {image: e.where for dataset in sets for e in dataset.examples for image in e.images}

    def trained_rows(self) -> frozenset[str]:
        """Return source and row number (`Conversation.where`) of every row of the training set."""
        return frozenset(example.where for example in self._train.examples) if self._train else frozenset()

    def use_features(self, features: Callable[[ImageSource], torch.Tensor]) -> None:
        """Use precomputed features of the vision tower in the batches, in place of the images."""
        for dataset in (self._train, self._validation):
            if dataset is not None:
                dataset.inputs = replace(dataset.inputs, features=features)

    def _loader(self, dataset: PackDataset, *, shuffle: bool) -> PackLoader:
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        order = EpochOrder(
            len(dataset), seed=self.mixture.seed, shuffle=shuffle, rank=rank, world=world, longest=dataset.longest
        )
        if trainer is None:
            return PackLoader(dataset, order, num_workers=self.num_workers)
        limit = trainer.limit_train_batches
        return PackLoader(
            dataset,
            order,
            num_workers=self.num_workers,
            rounds_per_step=trainer.accumulate_grad_batches,
            rounds=limit if isinstance(limit, int) else int(len(order) * limit),
            pin_memory=trainer.strategy.root_device.type == "cuda",
        )

    def _fingerprint(self) -> str:
        assert self._train is not None
        digest = hashlib.sha256(repr((self.mixture.seed, self._train.packs)).encode())
        for example in self._train.examples:
            digest.update(example.input_ids.tobytes())
            digest.update(np.packbits(example.supervised).tobytes())
            for column, value in sorted(example.values.items()):
                digest.update(repr((column, value)).encode())
            for image in example.images:
                digest.update(self._image_digest(image))
        return digest.hexdigest()

    def _image_digest(self, image: ImageSource) -> bytes:
        """Return the SHA-256 of an image file, or the bytes of an image in a row; the path does not count.

        A file is read once.
        """
        if isinstance(image, bytes):
            return image
        if image not in self._digests:
            self._digests[image] = bytes.fromhex(sha256_file(image))
        return self._digests[image]

    def _measures(self) -> dict[str, int]:
        """Return the counts and the seed, which usually differ where the training packs differ."""
        assert self._train is not None
        examples, packs = self._train.examples, self._train.packs
        tokens = sum(len(example) for example in examples)
        return {"rows": len(examples), "tokens": tokens, "packs": len(packs), "seed": self.mixture.seed}

    def _encoded(self, conversation: Conversation, tokens: Callable[[Conversation], Tokens]) -> Example | None:
        """Return the tokenized conversation, or None if it cannot be used."""
        assert self.inputs is not None
        try:
            example = as_example(
                conversation, tokens(conversation), self.inputs, self.max_length, truncate=self.truncate
            )
            if self.check_images:
                self._image_check.check(conversation)
        except RowError as error:
            self.bad_rows.handle(error)
            return None
        self.remarks.look_at(conversation, None if example.cut else example.supervised, self.inputs)
        return example

    def _packed(self, examples: Examples, kind: str, seed: int) -> PackDataset:
        assert self.inputs is not None
        if not examples:
            left_out = f"; the first one left out: {self.bad_rows.skipped[0]}" if self.bad_rows.skipped else ""
            held_out = "; see --data.validation_fraction" if self.validation_fraction else ""
            held_out += " (the same photo and the same text stay together)" if held_out else ""
            raise UserError(f"no row is left for {kind}{held_out}{left_out}")
        packs = plan_packs(examples.lengths, budget=self.budget, max_rows=self.pack_rows, seed=seed)
        return PackDataset(examples, packs, self.inputs)

    @contextmanager
    def _progress(self) -> Iterator[Callable[[], None]]:
        """Show a progress bar on a terminal; yield a function to call once per row."""
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task("checking and tokenising rows", total=self.mixture.total)
            yield lambda: progress.advance(task)

    def _say_what_was_found(self, seen: int, validation: int) -> None:
        """Print which columns are not read, and how many validation rows are also in the training set."""
        if self.trainer is not None and not self.trainer.is_global_zero:
            return
        for line in self.bad_rows.not_read():
            print(line, file=sys.stderr)
        if seen:
            same = "the photo or the text of a row that is trained on"
            print(f"--data.validation: {seen} of {validation} rows have {same}", file=sys.stderr)

    def _describe(self, sources: dict[str, dict[str, int]], validation: int, seen: int) -> dict[str, Any]:
        """Return the record of the training data: composition, tokens, fingerprints, and the rows left out."""
        assert self._train is not None
        examples, packs = self._train.examples, self._train.packs
        markers, left_out = self.remarks.markers, self.remarks.left_out
        tokens = sum(len(e) for e in examples)
        cut = [f"{e.where}: {e.cut} of {len(e) + e.cut} tokens" for e in examples if e.cut]
        return {
            "rows": {"train": len(examples), "validation": validation},
            "validation_rows_trained_on": seen,
            "sources": sources,
            "fingerprints": {
                source: sha256_file(path)
                for source in [*self.mixture.text, *self.mixture.visual, *self.validation]
                if (path := locate(source)).is_file()
            },
            "tokens": {
                "total": tokens,
                "supervised": int(sum(int(e.supervised.sum()) for e in examples)),
                "longest_row": max(len(e) for e in examples),
            },
            "packs": {
                "count": len(packs),
                "budget": self.budget,
                "filled": tokens / (len(packs) * self.budget),
            },
            "bad_rows": {"count": len(self.bad_rows.skipped), "messages": self.bad_rows.skipped[:1000]},
            "columns_not_read": {source: dict(columns) for source, columns in self.bad_rows.unread.items()},
            "cut_rows": {"count": len(cut), "rows": cut[:1000]},
            "rows_spelling_markers": {"count": len(markers), "rows": markers[:1000]},
            "rows_with_answers_trimmed": {"count": len(self.remarks.trimmed), "rows": self.remarks.trimmed[:1000]},
            "rows_with_answers_left_out": {
                "count": len(left_out),
                "because": self.remarks.left_out_because,
                "rows": left_out[:1000],
            },
            "folder_of_photos": str(Path(self.mixture.image_root)) if self.mixture.image_root else None,
        }
