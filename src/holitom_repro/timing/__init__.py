"""How long a video takes to the first token and after it: per stage, method, budget, frames, batch.

shapes: the models, with random weights, and what they are shown; stages: one pass with its stages marked; rows: a timed
row and its JSON line; measure: which rows, in which order, and their measurement. Needs torch and transformers.
"""
