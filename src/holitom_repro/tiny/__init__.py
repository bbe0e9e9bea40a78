"""The tiny tier: a synthetic video-QA world, a small video LLM trained on it, and the benchmarks made from it."""
