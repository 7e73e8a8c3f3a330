"""Data pipeline from rows of many formats to packed batches of tokens, independent of the models."""

import mmtune.common.torchvision_ops  # noqa: F401  # before anything here imports lightning or datasets
