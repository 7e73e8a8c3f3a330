"""Flags, config checks and messages that commands share."""
