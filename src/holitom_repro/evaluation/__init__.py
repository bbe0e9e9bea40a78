"""Scoring a model on benchmarks: the lmms-eval plugin, the resumable sweep, and the statistics of its answers."""
