"""Applications on top of generation."""
