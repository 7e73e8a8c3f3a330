"""Training on Lightning: the module, the loss, the ledger of cost. Knows nothing of evaluation."""

import mmtune.common.torchvision_ops  # noqa: F401  # before anything here imports lightning
