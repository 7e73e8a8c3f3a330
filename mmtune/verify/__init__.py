"""Extraction, comparison and verdicts."""
