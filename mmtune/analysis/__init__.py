"""Scores beside cost. Reads only the files that runs and evaluations left behind."""
