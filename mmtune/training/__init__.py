"""Training with Lightning: the module, the loss, the cost ledger. Independent of evaluation."""

import mmtune.common.torchvision_ops  # noqa: F401  # before anything here imports lightning
