"""Floating-point operations and memory of a training step, counted on tensors without values."""
