"""How long a video takes to the first token and after it, and what it holds: per stage, method, budget, frames, batch.

shapes: the models, with random weights, and what they are shown; stages: one pass with its stages marked; records: the
JSON line of a timed row; settings: which rows, in which order; measure: one row, or all. Needs torch and transformers.
"""
