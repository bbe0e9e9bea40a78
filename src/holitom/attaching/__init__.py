"""The parts behind ``holitom.attach.reduce_tokens``: the prompt's seam, the decoder's seam, and what they record."""
