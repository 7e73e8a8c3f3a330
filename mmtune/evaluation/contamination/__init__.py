"""Overlap of evaluation sets with training rows."""
