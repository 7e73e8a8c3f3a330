"""LightningModule of both training stages: align the projector, tune the language model."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
import warnings
from typing import Any, Literal

import torch
from transformers import get_cosine_schedule_with_warmup

from mmtune.common.devices import on_device
from mmtune.common.errors import UserError
from mmtune.data.collate import PackedBatch
from mmtune.data.encoding import ModelInputs
from mmtune.data.rendering.template_date import check_date, today
from mmtune.data.rendering.templates import get_template
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models import saving
from mmtune.models.fitness.check import fitness_of
from mmtune.models.fitness.result import Fitness
from mmtune.models.inputs import model_inputs
from mmtune.models.language import check_language, load_config, load_tokenizer, recompute_activations
from mmtune.models.spec import LoraOptions, ProjectorKind, Quantisation, VisionOptions
from mmtune.models.vision import build_tower
from mmtune.models.vlm import Stage
from mmtune.training.image_features import encoded, stored_features
from mmtune.training.module_options import check_rates, starting_spec
from mmtune.training.objectives.objective import Objective
from mmtune.training.objectives.sft import SupervisedObjective
from mmtune.training.optimizers import OptimizerName, build_optimizer
from mmtune.training.resuming import ResumableModule
from mmtune.training.sharding import shard

STEP_METRICS = ("train_loss", "tokens_per_s", "lr_")  # prefixes of the metrics that are logged once a step
_DEFAULT_LEARNING_RATE = {"align": 1e-3, "lora": 2e-4, "full": 2e-5}


class InstructionTuning(ResumableModule):
    """Train a vision-language model on instructions.

    Start from `base`, a run or saved model, or put a new one together from `language`, `vision` and `projector`.

    Args:
        stage: `align` trains the projector alone; `tune` the language model, in full or by adapters, and the projector.
        base: a run or saved model to start from, in place of language, vision and projector.
        language: hub id, folder, GGUF file or `package:NAME/file` of the language model.
        vision: the tower; leave out for a text-only model.
        projector: `mlp2x_gelu` (where left out) or `linear`.
        template: template that renders conversations: vicuna_v1, llama_2, chatml or tokenizer (its own).
        template_date: the date (2026-01-31) that a chat template writes which asks for today's; by default the day
            the run began, or what the base is recorded with.
        training_template: the template of the training data; by default `plain` to align, and `template` to tune.
        lora: adapters to train in the tune stage; leave out to finetune in full.
        quantise: keep the frozen language model in 4 bits (nf4: QLoRA) or 8 (int8); what is trained are adapters.
        learning_rate: of the language model (tune) or the projector (align); by default the recipe's: 1e-3 to align,
            2e-4 for adapters, 2e-5 in full.
        projector_learning_rate: of the projector in the tune stage; 0 freezes it.
        warmup: share of the steps in which the learning rate rises; then it falls along a cosine.
        weight_decay: of AdamW.
        optimizer: `adamw`; `adamw_8bit`, whose states take a quarter of the memory (bitsandbytes); or
            `paged_adamw_8bit`, which moves them to the host's memory where a GPU's runs short.
        dtype: of the language model's frozen weights; what is trained stays float32, and so does the tower.
        gradient_checkpointing: compute activations twice rather than keep them.
        stored_features_gib: GiB of the cache that the tower's features may take, which are computed once for each photo
            and read by all later epochs and runs; where the photos need more, and with 0, the tower runs in every step.
        seed: of the projector's and adapters' first weights.
    """

    def __init__(
        self,
        stage: Stage = "tune",
        base: str | None = None,
        language: str | None = None,
        vision: VisionOptions | None = None,
        projector: ProjectorKind | None = None,
        template: str | None = None,
        template_date: str | None = None,
        training_template: str | None = None,
        lora: LoraOptions | None = None,
        quantise: Quantisation | None = None,
        learning_rate: float | None = None,
        projector_learning_rate: float = 2e-5,
        warmup: float = 0.03,
        weight_decay: float = 0.0,
        optimizer: OptimizerName = "adamw",
        dtype: Literal["float32", "bfloat16"] = "float32",
        gradient_checkpointing: bool = False,
        stored_features_gib: float = 20.0,
        seed: int = 42,
    ) -> None:
        super().__init__()
        check_rates(learning_rate, projector_learning_rate, warmup, weight_decay)
        self.stage: Stage = stage
        self.base = base
        self.spec = starting_spec(base, language, vision, projector, template, lora, quantise, seed)
        if template_date is not None:
            self.spec.template_date = check_date(template_date, "--model.template_date")
        if stage == "align" and self.spec.vision is None:
            raise UserError("--model.stage align: there is no projector to align without a tower; give --model.vision")
        if stage == "align" and lora is not None:
            raise UserError("--model.lora: the align stage trains the projector alone; leave it out")
        if stage == "tune" and self.spec.quantise and not self.spec.lora:
            raise UserError(
                f"--model.quantise {self.spec.quantise}: quantised weights cannot be trained; give --model.lora"
            )
        kind = "align" if stage == "align" else "lora" if self.spec.lora else "full"
        self.learning_rate = learning_rate if learning_rate is not None else _DEFAULT_LEARNING_RATE[kind]
        self.projector_learning_rate = projector_learning_rate
        self.warmup, self.weight_decay = warmup, weight_decay
        self.optimizer_name: OptimizerName = optimizer
        self.dtype_of_frozen: torch.dtype = getattr(torch, dtype)
        self.gradient_checkpointing, self.stored_features_gib = gradient_checkpointing, stored_features_gib
        self.training_template = training_template or ("plain" if stage == "align" else self.spec.template)
        self.objective: Objective = SupervisedObjective()  # another one is set before the data is made
        self.model: VisionLanguageModel | None = None
        # whether the loss is scaled for float16, and whether the last step changed weights then (`SkippedSteps`)
        self.scales_loss, self.step_taken = False, True
        self.new_schedule = False  # whether a resumed run may have another course of the learning rate
        self._step_started = time.perf_counter()
        self._step_loss, self._step_weight, self._step_tokens = torch.zeros(()), 0.0, 0
        self._held_out = self._wrong_image = torch.zeros(2, dtype=torch.float64)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """Tokenizer of the language model; loaded at first use."""
        return load_tokenizer(self.spec.language)

    @functools.cached_property
    def inputs(self) -> ModelInputs:
        """Properties of the model and the objective that the encoding of data needs.

        Raises:
            UserError: the template writes no end of an answer.
        """
        template = get_template(self.training_template, self.tokenizer, self.spec.template_date)
        if template.reads_clock:
            self.spec.template_date = today()
            template = get_template(self.training_template, self.tokenizer, self.spec.template_date)
        template.check_trainable(f"--model.template {template.name}: {self.spec.language}")
        return dataclasses.replace(
            model_inputs(self.spec, self.tokenizer),
            template=template,
            value_columns=self.objective.value_columns,
            weight=self.objective.weight,
        )

    @property
    def fitness(self) -> Fitness:
        """Way in which the language model is computed: documents packed or one by one.

        Raises:
            UserError: the language model cannot be computed.
        """
        language = self.spec.language
        return fitness_of(load_config(language), language, sees=self.spec.vision is not None)

    @property
    def strict_loading(self) -> bool:
        """Always false: checkpoints hold only trained weights, and other weights may be missing."""
        return False

    def check_parts(self) -> None:
        """Check that every part of the model exists, before the data is read and the run directory is written to.

        Raises:
            UserError: weights are missing, the language model cannot be computed, or an adapter matches no layer.
        """
        if self.spec.vision is not None:
            build_tower(self.spec.vision)
        assert self.fitness
        check_language(self.spec.language, self.spec.lora)

    def configure_model(self) -> None:
        """Load the weights; Lightning calls this after the data has been checked."""
        if self.model is not None:
            return
        frozen = self.stage == "align" or self.spec.lora is not None
        dtype = self.dtype_of_frozen if frozen else torch.float32  # fully trained weights are never rounded
        model = VisionLanguageModel.assemble(self.spec, dtype=dtype, tokenizer=self.tokenizer)
        if self.base is not None:
            saving.load_trained(model, self.base)
        self.prepare(model)
        # transformers loads in evaluation mode, in which gradient checkpointing does nothing; the tower stays in it,
        # as it should, and Lightning need not warn of that
        model.train()
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
        if self.device_mesh is not None:
            shard(model, self.device_mesh)
        self.model = model

    def prepare(self, model: VisionLanguageModel) -> None:
        """Mark the trainable weights of a model, convert them to float32, and set up gradient checkpointing."""
        model.set_stage(self.stage)
        if self.stage == "tune" and model.projector is not None and not self.projector_learning_rate:
            model.projector.requires_grad_(False)
        if self.gradient_checkpointing:
            recompute_activations(model.base_language)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def on_fit_start(self) -> None:
        """Store the features of images, and measure their mean and deviation if they are to be standardized.

        Nothing is measured if the run has a base or is resumed.
        """
        assert self.model is not None
        tower, data = self.model.tower, self.trainer.datamodule  # type: ignore[attr-defined]
        images = data.images()
        if tower is None or not images:
            return
        stored = None
        if self.stored_features_gib:
            stored = stored_features(
                self.trainer, tower, images, limit=self.stored_features_gib, num_workers=data.num_workers
            )
        if stored is not None:
            data.use_features(stored)
        if tower.options.standardise and self.base is None and not self.trainer.ckpt_path:
            sample = dict(itertools.islice(images.items(), 256))
            features = encoded(tower, sample) if stored is None else map(stored, sample)
            tower.measure_standardisation(torch.stack(list(features)).to(self.device))

    def on_train_start(self) -> None:
        """Reset the timer and the sums for the first step."""
        self._begin_step()

    def training_step(self, batch: PackedBatch, batch_idx: int) -> torch.Tensor:
        """Return a pack's share of the loss of its optimizer step, the weighted mean over all packs of the step.

        Lightning divides by the number of accumulated packs and averages over the processes; the loss is multiplied by
        both. A strategy that accumulates gradients itself, as DeepSpeed's, divides once more.
        """
        loss = self._loss(batch)
        self._step_loss += loss.detach() * batch.counted_weight
        self._step_weight += batch.counted_weight
        self._step_tokens += len(batch.input_ids)
        accumulated = self.trainer.accumulate_grad_batches
        packs = accumulated * self.trainer.world_size
        if self.trainer.strategy.handles_gradient_accumulation:
            packs *= accumulated
        return loss * (packs * batch.counted_weight / batch.step_weight)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the loss of the step, over all its packs and processes, the tokens per second, and the learning rates.

        The values are on the CPU, so that logging them waits for the device once and not for each.
        """
        self.step_taken = not self.scales_loss
        counts = on_device([float(self._step_weight), float(self._step_tokens)], self.device)
        sums = torch.cat([self._step_loss[None], counts])
        loss, weight, tokens = self.trainer.strategy.reduce(sums, reduce_op="sum").cpu()
        elapsed = time.perf_counter() - self._step_started
        self.log("train_loss", loss / weight, prog_bar=True, batch_size=1)
        self.log("tokens_per_s", tokens / elapsed, prog_bar=True, batch_size=1)
        for group in optimizer.param_groups:
            self.log(f"lr_{group['name']}", torch.tensor(group["lr"]), batch_size=1)
        self._begin_step()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Advance the learning rate after a step that changed weights."""
        if self.step_taken:
            scheduler.step()

    def on_validation_end(self) -> None:
        """Reset the timer, so that the next step's time does not include the validation."""
        self._step_started = time.perf_counter()

    def _begin_step(self) -> None:
        self._step_loss, self._step_weight, self._step_tokens = torch.zeros((), device=self.device), 0.0, 0
        self._step_started = time.perf_counter()

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        """Add the loss of a held-out pack; if it has images, also the loss with each image replaced by another."""
        self._held_out += self._weighted(self._loss(batch), batch)
        several = len(set(batch.image_keys)) > 1
        # processes that hold the model in parts compute it together or not at all
        if self.trainer.strategy.reduce_boolean_decision(several, all=False):
            loss = self._loss(batch.with_images(_exchanged(batch.image_keys)) if several else batch)
            if several:
                self._wrong_image += self._weighted(loss, batch)

    def on_validation_epoch_start(self) -> None:
        """Reset the sums of losses and weights, for correct and for exchanged images."""
        self._held_out, self._wrong_image = torch.zeros(2, 2, dtype=torch.float64)

    def on_validation_epoch_end(self) -> None:
        """Log the losses over all processes; a process without images takes part in both reductions, too."""
        for name, sums in (("val_loss", self._held_out), ("val_loss_wrong_photo", self._wrong_image)):
            loss, weight = self.trainer.strategy.reduce(sums.to(self.device, torch.float32), reduce_op="sum")
            if weight > 0:
                self.log(name, loss / weight, prog_bar=name == "val_loss", sync_dist=True)

    @staticmethod
    def _weighted(loss: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        return torch.tensor([float(loss) * batch.counted_weight, batch.counted_weight], dtype=torch.float64)

    def configure_optimizers(self) -> Any:
        """Create AdamW with one learning rate each for projector and language model; linear warm-up, then cosine."""
        assert self.model is not None
        projector = [p for p in self.model.projector.parameters() if p.requires_grad] if self.model.projector else []
        language = [p for p in self.model.language.parameters() if p.requires_grad]
        projector_rate = self.learning_rate if self.stage == "align" else self.projector_learning_rate
        groups = [
            {"params": parameters, "lr": rate, "name": name}
            for name, parameters, rate in (
                ("language", language, self.learning_rate),
                ("projector", projector, projector_rate),
            )
            if parameters
        ]
        optimizer = build_optimizer(self.optimizer_name, groups, self.weight_decay)
        if math.isinf(self.trainer.estimated_stepping_batches):
            raise UserError(
                "--trainer.max_epochs -1: the learning rate falls to the run's end; give epochs or max_steps"
            )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_cosine_schedule_with_warmup(optimizer, round(self.warmup * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _loss(self, batch: PackedBatch) -> torch.Tensor:
        assert self.model is not None
        nothing = self._unseen(batch)  # before the model, at the point where the projectors of other processes run
        hidden = self.model(batch)
        loss = self.objective.loss(hidden, batch, self.model.output_layer)
        return loss if nothing is None else loss + nothing

    def _unseen(self, batch: PackedBatch) -> torch.Tensor | None:
        """Return a zero that gives the projector a gradient on packs without images; None if it is not needed.

        So processes with and without images exchange the same gradients. The tower does not run.
        """
        assert self.model is not None
        projector, tower = self.model.projector, self.model.tower
        if batch.image_keys or projector is None or tower is None:
            return None
        if not any(parameter.requires_grad for parameter in projector.parameters()):
            return None
        dtype = next(projector.parameters()).dtype  # which a strategy may have changed
        zeros = torch.zeros(1, tower.shape.width, dtype=dtype, device=batch.input_ids.device)
        nothing: torch.Tensor = projector(zeros)
        return 0.0 * nothing.sum()


def _exchanged(keys: tuple[int, ...]) -> list[int]:
    """Return for each image the index of another one: the rotation with the fewest equal images."""

    def equal(shift: int) -> int:
        return sum(key == keys[(i + shift) % len(keys)] for i, key in enumerate(keys))

    best = min(range(1, len(keys)), key=equal)
    return [(i + best) % len(keys) for i in range(len(keys))]
