"""Pure tensor functions: no model, no state, no copy to the host that a docstring does not name. Ties: lowest index."""
