"""Cosine similarity of a cell with itself one frame later, in float32 whatever the input's precision."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# Elements of one chunk of frames, where chunks are copied: small enough for a CPU's cache, enough to keep a GPU busy.
_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 25}
_TINY = 1e-12


def row_norms(tokens: Float[Tensor, "frames cells dim"]) -> Float[Tensor, "frames cells"]:
    """Euclidean norm of every token in float32; a NaN or an infinity in a token makes its norm non-finite."""
    return torch.cat(
        [torch.linalg.vector_norm(part.float(), dim=-1) for part in tokens.split(_frames_per_chunk(tokens))]
    )


def neighbour_cosine(
    tokens: Float[Tensor, "frames cells dim"], norms: Float[Tensor, "frames cells"] | None = None
) -> Float[Tensor, "pairs cells"]:
    """cos(x[t, n], x[t + 1, n]) for neighbouring frames: [T - 1, N] float32, [0, N] for one frame. A zero vector has
    cosine 0 with everything. ``norms``: row_norms(tokens), if the caller has them. The product of two frames is never
    held for the whole video, nor is a float32 copy of half-precision tokens."""
    norms = row_norms(tokens) if norms is None else norms
    if tokens.shape[0] < 2:
        return norms.new_zeros(0, tokens.shape[1])
    if tokens.dtype == torch.float32 and tokens.device.type == "cpu":
        dots = _row_products(tokens)
    else:
        pairs, step = tokens.shape[0] - 1, _frames_per_chunk(tokens)
        parts = [(tokens[i : min(i + step, pairs)], tokens[i + 1 : i + 1 + step]) for i in range(0, pairs, step)]
        # Multiply and sum: a matrix product on a GPU might round to TF32.
        dots = torch.cat([(a.float() * b.float()).sum(-1) for a, b in parts])
    unit = norms.clamp_min(_TINY)
    return dots / unit[:-1] / unit[1:]


def cosine_matrix(a: Float[Tensor, "n dim"], b: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """Cosine of every row of ``a`` with every row of ``b``, float32."""
    unit_a, unit_b = (torch.nn.functional.normalize(x.float(), dim=-1, eps=_TINY) for x in (a, b))
    return unit_a @ unit_b.T


def _row_products(tokens: Tensor) -> Tensor:
    """tokens[t, n] . tokens[t + 1, n] as a batch of 1 x D by D x 1 products, which needs no memory for the products."""
    dim = tokens.shape[-1]
    return (tokens[:-1].reshape(-1, 1, dim) @ tokens[1:].reshape(-1, dim, 1)).reshape(-1, tokens.shape[1])


def _frames_per_chunk(tokens: Tensor) -> int:
    frames, cells, dim = tokens.shape
    # Never more than a quarter of the video: the float32 copies of a half-precision chunk stay below the input's size.
    return max(1, min(_CHUNK.get(tokens.device.type, 1 << 23) // max(1, cells * dim), -(-frames // 4)))
