"""Experiments of several commands: quickstart, reproduce."""
