"""Extraction and comparison of answers."""
