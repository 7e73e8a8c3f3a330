"""Greedy decoding of packed prefix trees."""
