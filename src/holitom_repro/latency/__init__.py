"""How long a video takes to the first token and after it, and what it holds: ``python -m holitom_repro bench latency``.

Needs torch, transformers and jaxtyping; PyAV and Pillow only to time the decoding of a video file. Nothing here is
imported by the rest of the kit but figures and the command line.
"""
