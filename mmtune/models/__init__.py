"""The model: vision tower, projector, language model. Knows nothing of training or tasks."""

import mmtune.torchvision_ops  # noqa: F401  # before anything here imports transformers, timm, open_clip or peft
