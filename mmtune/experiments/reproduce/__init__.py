"""Presets, steps and generated questions of the reproduction."""
