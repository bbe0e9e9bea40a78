"""How long a video takes to the first token and after it, and what it holds: per stage, method, budget, frames, batch.

shapes: the models, with random weights, and what they are shown; stages: one pass with its stages marked; rows: a timed
row and its JSON line; settings: which rows, in which order; measure: one row, or all. Needs torch and transformers.
"""
