"""Sharding of the language model among devices, block by block (FSDP2), for a frozen base too large for one."""

from __future__ import annotations

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from mmtune.common.errors import UserError
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.language import decoder_blocks
from mmtune.models.spec import ModelSpec
from mmtune.models.vlm import Stage


def check_sharding(spec: ModelSpec, stage: Stage, strategy: ModelParallelStrategy) -> None:
    """Check that a model and stage can be sharded with a strategy.

    Raises:
        UserError: the language model is trained in full, its weights are quantised, or checkpoints would be in parts.
    """
    if strategy._save_distributed_checkpoint:  # Lightning's default
        raise UserError(
            "--trainer.strategy: a run could not go on from a checkpoint in parts, for it lacks the frozen weights, "
            "which Lightning would look for; give ModelParallelStrategy save_distributed_checkpoint: false, as "
            "--config fsdp does"
        )
    if stage == "tune" and spec.lora is None:
        raise UserError("--trainer.strategy: fsdp divides a frozen language model; for a full finetune use deepspeed")
    if spec.quantise is not None:
        raise UserError(
            f"--model.quantise {spec.quantise}: quantised weights cannot be divided; use ddp, or no quantise"
        )


def shard(model: VisionLanguageModel, mesh: DeviceMesh) -> None:
    """Shard each block of the language model, and a trained projector, among the devices of a mesh.

    In a mesh of two dimensions, the second shards and the first replicates, so that blocks are gathered within a
    machine. Word embeddings, output layer and last norm are frozen and are not sharded: they are used outside the
    decoder's own forward pass, which gathers the parts.
    """
    decoder = model.base_language.base_model
    blocks = decoder_blocks(model.base_language)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    whole = set(decoder.parameters()) - set(blocks.parameters())
    fully_shard(decoder, mesh=mesh, ignored_params=whole)
    if model.projector is not None and any(p.requires_grad for p in model.projector.parameters()):
        fully_shard(model.projector, mesh=mesh)


def gather_trained(model: nn.Module) -> None:
    """Gather the trained weights on every process, so that one can save them; all processes must call this."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad and isinstance(parameter, DTensor):
                module.register_parameter(name, nn.Parameter(parameter.full_tensor()))


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a tensor that may be sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
