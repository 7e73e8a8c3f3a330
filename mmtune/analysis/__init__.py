"""Reports and comparisons of scores and training cost, made from the output files of runs and evaluations alone."""
