"""The evaluation run: requests, answers' database, results."""
