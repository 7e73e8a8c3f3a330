"""Flags, config checks and messages that several commands use."""
