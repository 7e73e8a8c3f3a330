"""Checks of whether mmtune's computations of a language model agree with transformers' own code."""
