"""Pure tensor functions: no model, no state, no host copy that is not named in a docstring. Ties go to the lowest index."""
