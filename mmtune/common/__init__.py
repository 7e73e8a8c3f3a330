"""Shared helpers without a model or data: errors, files, text, signals."""
