"""Evaluation of models on tasks: prompts, answers, scores and samples."""
