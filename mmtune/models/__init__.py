"""Vision-language model: vision tower, projector and language model. Independent of training and tasks."""

import os

import mmtune.common.torchvision_ops  # noqa: F401  # before anything here imports transformers, timm, open_clip or peft

# transformers fetches kernels, which are code, from the hub for some kinds of models where `kernels` is installed
os.environ.setdefault("USE_HUB_KERNELS", "NO")
