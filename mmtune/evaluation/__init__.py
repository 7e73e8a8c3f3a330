"""From a task file to prompts, answers, scores and samples. Knows a model only by its protocol."""
