"""Overlap between evaluation sets and training rows."""
