"""Rows of the quickstart."""
