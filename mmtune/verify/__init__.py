"""Answer verifiers: extraction of answers, comparison with gold answers, and verdicts."""
