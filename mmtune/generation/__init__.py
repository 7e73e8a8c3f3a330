"""Generation of completions from prompts: requests, chat, thinking."""

import mmtune.common.torchvision_ops  # noqa: F401  # before anything here imports transformers
