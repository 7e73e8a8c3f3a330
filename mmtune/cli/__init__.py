"""The commands. Imports all the rest and is imported by none."""
