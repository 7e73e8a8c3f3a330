"""Readers of training rows: files, formats and columns to conversations."""
