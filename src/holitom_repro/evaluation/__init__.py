"""Scoring a model on benchmarks: the lmms-eval model, the sweep over cells, and the statistics of answers."""
