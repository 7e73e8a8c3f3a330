"""Presets and steps of the reproduction."""
