"""Allowlist of the classes that a config may name, and of their arguments."""

from __future__ import annotations

import datetime
import functools
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from os import PathLike
from typing import Any

import mmtune.common.torchvision_ops  # noqa: F401  # before lightning

import torch  # isort: skip
from jsonargparse import Namespace
from lightning.fabric.plugins import environments
from lightning.pytorch import accelerators, callbacks, loggers, plugins, profilers, strategies
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme

from mmtune.data.mixture import Mixture
from mmtune.models.spec import LoraOptions, VisionOptions

_NESTED = "accelerator precision_plugin"
_DISTRIBUTED = "process_group_backend timeout"
_PARALLEL = f"{_NESTED} {_DISTRIBUTED} cluster_environment"
_DDP_FLAGS = (
    "bucket_cap_mb broadcast_buffers check_reduction find_unused_parameters gradient_as_bucket_view init_sync "
    "skip_all_reduce_unused_params static_graph"
)
_THEME = (
    "description progress_bar progress_bar_finished progress_bar_pulse batch_progress time processing_speed metrics "
    "metrics_text_delimiter metrics_format"
)
_SERVICE = "name project entity group tags notes job_type prefix"

# Reviewed one by one: none of these, with these arguments, runs code that a config names, deletes files that are not
# its own, or uploads files other than checkpoints. Left out are classes that take functions (LambdaCallback,
# ThroughputMonitor, ModelPruning, BackboneFinetuning), that set attributes by name (the two finders), that delete
# (OnExceptionCheckpoint), or whose arguments cannot be written down again (Timer; max_time does the same), and
# arguments that upload source files or hand on options of another library.
CLASSES: dict[type, str] = {
    callbacks.DeviceStatsMonitor: "cpu_stats",
    callbacks.EarlyStopping: "monitor min_delta patience verbose mode strict check_finite stopping_threshold "
    "divergence_threshold check_on_train_epoch_end log_rank_zero_only",
    callbacks.EMAWeightAveraging: "use_buffers decay update_every_n_steps update_starting_at_step "
    "update_starting_at_epoch",
    callbacks.GradientAccumulationScheduler: "scheduling",
    callbacks.LearningRateMonitor: "logging_interval log_momentum log_weight_decay",
    callbacks.ModelCheckpoint: "dirpath filename monitor verbose save_last save_top_k save_on_exception "
    "save_weights_only mode auto_insert_metric_name every_n_train_steps train_time_interval every_n_epochs "
    "save_on_train_epoch_end enable_version_counter",
    callbacks.ModelSummary: "max_depth",
    callbacks.RichModelSummary: "max_depth",
    callbacks.RichProgressBar: "refresh_rate leave theme",
    callbacks.StochasticWeightAveraging: "swa_lrs swa_epoch_start annealing_epochs annealing_strategy",
    callbacks.TQDMProgressBar: "refresh_rate process_position leave",
    RichProgressBarTheme: _THEME,
    loggers.CometLogger: "api_key workspace project experiment_key mode online prefix",
    loggers.CSVLogger: "save_dir name version prefix flush_logs_every_n_steps",
    loggers.MLFlowLogger: "experiment_name run_name tracking_uri tags save_dir log_model prefix artifact_location "
    "run_id synchronous",
    loggers.TensorBoardLogger: "save_dir name version log_graph default_hp_metric prefix sub_dir comment max_queue "
    "flush_secs filename_suffix purge_step",
    loggers.WandbLogger: f"{_SERVICE} save_dir version offline dir id anonymous log_model checkpoint_name "
    "add_file_policy mode resume",
    strategies.DDPStrategy: f"{_PARALLEL} checkpoint_io {_DDP_FLAGS} model_averaging_period start_method",
    strategies.DeepSpeedStrategy: f"{_PARALLEL} zero_optimization stage remote_device offload_optimizer "
    "offload_parameters offload_params_device nvme_path params_buffer_count params_buffer_size max_in_cpu "
    "offload_optimizer_device optimizer_buffer_count block_size queue_depth single_submit overlap_events thread_count "
    "pin_memory sub_group_size contiguous_gradients overlap_comm allgather_partitions reduce_scatter "
    "allgather_bucket_size reduce_bucket_size zero_allow_untested_optimizer logging_batch_size_per_gpu logging_level "
    "loss_scale initial_scale_power loss_scale_window hysteresis min_loss_scale partition_activations "
    "cpu_checkpointing contiguous_memory_optimization synchronize_checkpoint_boundary load_full_weights "
    "exclude_frozen_parameters",
    strategies.FSDPStrategy: f"{_PARALLEL} checkpoint_io cpu_offload sharding_strategy state_dict_type",
    strategies.ModelParallelStrategy: f"{_DISTRIBUTED} data_parallel_size tensor_parallel_size "
    "save_distributed_checkpoint",
    strategies.SingleDeviceStrategy: f"{_NESTED} checkpoint_io device",
    accelerators.CPUAccelerator: "",
    accelerators.CUDAAccelerator: "",
    accelerators.MPSAccelerator: "",
    plugins.AsyncCheckpointIO: "checkpoint_io",
    plugins.BitsandbytesPrecision: "mode ignore_modules",
    plugins.DeepSpeedPrecision: "precision",
    plugins.DoublePrecision: "",
    plugins.FSDPPrecision: "precision",
    plugins.HalfPrecision: "precision",
    plugins.MixedPrecision: "precision device",
    plugins.TorchCheckpointIO: "",
    plugins.TorchSyncBatchNorm: "",
    environments.KubeflowEnvironment: "",
    environments.LightningEnvironment: "",
    environments.LSFEnvironment: "",
    environments.MPIEnvironment: "",
    environments.SLURMEnvironment: "auto_requeue requeue_signal",
    environments.TorchElasticEnvironment: "",
    profilers.AdvancedProfiler: "dirpath filename line_count_restriction dump_stats",
    profilers.PassThroughProfiler: "dirpath filename",
    profilers.PyTorchProfiler: "dirpath filename group_by_input_shapes emit_nvtx export_to_chrome row_limit "
    "sort_by_key record_module_names",
    profilers.SimpleProfiler: "dirpath filename extended",
    Mixture: "text visual text_fraction total seed image_root leave_out",
    LoraOptions: "r alpha dropout targets dora rslora",
    VisionOptions: "tower weights blocks grid standardise fit class_token",
}
_PLAIN = (str, int, float, PathLike, datetime.timedelta, Enum, torch.device, torch.dtype, type(None))


@functools.cache
def class_names() -> dict[str, type]:
    """Map every dotted name of an allowed class, in the loaded modules of lightning and mmtune, to the class."""
    found = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in CLASSES}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("lightning", "mmtune"):
            for attribute, value in list(vars(module).items()):
                if inspect.isclass(value) and value in CLASSES and attribute == value.__name__:
                    found[f"{name}.{attribute}"] = value
    return found


def objections(config: Any, trusted: Sequence[str] = (), key: str = "") -> Iterator[tuple[str, str, str]]:
    """Find every value of a parsed config that would run code outside the allowlist.

    Args:
        config: parsed values, in which classes are still given by `class_path` and arguments.
        trusted: packages and dotted names of code that the user trusts.
        key: dotted key of these values.

    Yields:
        Key of the value, dotted name of the code, and the argument that is not allowed; "" if the code itself is not
        on the list.
    """
    values = vars(config) if isinstance(config, Namespace) else config
    if isinstance(values, Mapping):
        if "class_path" in values:
            yield from _of_class(values, trusted, key)
            return
        for name, value in values.items():
            yield from objections(value, trusted, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple | set | frozenset):
        for value in values:
            yield from objections(value, trusted, key)
    elif not isinstance(values, _PLAIN) and not _covered(path := _path(values), trusted):
        yield key, path, ""


def _of_class(spec: Mapping[str, Any], trusted: Sequence[str], key: str) -> Iterator[tuple[str, str, str]]:
    path = str(spec["class_path"])
    kind, free = class_names().get(path), _covered(path, trusted)
    if kind is None and not free:
        yield key, path, ""
        return
    known = CLASSES[kind].split() if kind else ()
    own = inspect.signature(kind).parameters if kind else {}
    for part in ("init_args", "dict_kwargs"):
        inner = spec.get(part) or {}
        for name, value in (vars(inner) if isinstance(inner, Namespace) else inner).items():
            if free or name in known:
                yield from objections(value, trusted, f"{key}.{part}.{name}")
            # empty values have no effect, and are the default of most arguments
            elif value not in (None, False, 0, "") and (name not in own or value != own[name].default):
                yield f"{key}.{part}.{name}", path, name


def _covered(path: str, trusted: Sequence[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in trusted)


def _path(value: Any) -> str:
    """Return the dotted name of a function or class, or of the class of another object."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
