"""Data of the quickstart."""
