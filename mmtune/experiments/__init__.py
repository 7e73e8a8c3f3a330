"""Experiments that run several commands: `quickstart` and `reproduce`."""
