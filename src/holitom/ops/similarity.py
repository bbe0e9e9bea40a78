"""Cosines and inner products in float32 whatever the input's precision: neighbouring frames, groups, nearest rows."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Elements of one block of rows: on a CPU its product stays in the cache, on a GPU there are few launches.
_BLOCK = {"cpu": 1 << 19, "cuda": 1 << 25}
_TINY = 1e-12


@torch.no_grad()
def row_norms(tokens: Float[Tensor, "frames cells dim"]) -> Float[Tensor, "frames cells"]:
    """Euclidean norm of every token in float32; a NaN or an infinity in a token makes its norm non-finite."""
    if tokens.dtype == torch.float32:
        return torch.linalg.vector_norm(tokens, dim=-1)
    rows = tokens.reshape(-1, tokens.shape[-1])
    return torch.cat([torch.linalg.vector_norm(part.float(), dim=-1) for part in rows.split(_block(rows))]).reshape(
        tokens.shape[:2]
    )


@torch.no_grad()
def neighbour_cosine(
    tokens: Float[Tensor, "frames cells dim"], norms: Float[Tensor, "frames cells"] | None = None
) -> Float[Tensor, "pairs cells"]:
    """cos(x[t, n], x[t + 1, n]) for neighbouring frames: [T - 1, N] float32, [0, N] for one frame. A zero vector has
    cosine 0 with everything. ``norms``: row_norms(tokens), if the caller has them.

    Works through blocks of rows, so that neither the products nor a float32 copy of the whole video is ever held.
    Multiplies and adds: a matrix product on a GPU might round to TF32, and on a CPU it is slower at one row by one.
    """
    norms = row_norms(tokens) if norms is None else norms
    frames, cells, dim = tokens.shape
    here = tokens[:-1].reshape(-1, dim)
    there = tokens[1:].reshape(-1, dim)
    dots = norms.new_empty(here.shape[0])
    step = _block(here)
    product = norms.new_empty(min(step, here.shape[0]), dim)
    for i in range(0, here.shape[0], step):
        block = product[: dots[i : i + step].shape[0]]
        torch.mul(here[i : i + step].float(), there[i : i + step].float(), out=block)
        torch.sum(block, dim=-1, out=dots[i : i + step])
    unit = norms.clamp_min(_TINY)
    return dots.reshape(frames - 1, cells) / unit[:-1] / unit[1:]


@torch.no_grad()
def nearest_row(
    rows: Float[Tensor, "rows dim"], ids: Int[Tensor, " n"], heads: Int[Tensor, " m"]
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """For every row in ``ids``: its cosine with the most similar row of ``heads`` (float32; the first of equals), and
    that row's place in ``heads``. A NaN or an infinity in either row makes the cosine non-finite. Blocks of rows, so
    that beside one copy of the heads only a fraction of the input is held; on a GPU as few as fit into 64 MiB."""
    unit = rows[heads].float()
    unit.div_(torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_min_(_TINY))
    room = _BLOCK["cuda"] // 2 if rows.is_cuda else rows.numel() // 8
    step = max(1, room // (rows.shape[1] + len(heads)))
    likeness, nearest = unit.new_empty(len(ids)), torch.empty_like(ids)
    for i in range(0, len(ids), step):
        here = rows[ids[i : i + step]].float()
        best = (here @ unit.T).max(1)
        likeness[i : i + step] = best.values / torch.linalg.vector_norm(here, dim=-1).clamp_min_(_TINY)
        nearest[i : i + step] = best.indices
    return likeness, nearest


@torch.no_grad()
def gram(x: Float[Tensor, "groups n dim"]) -> Float[Tensor, "groups n n"]:
    """x @ x^T of every group, exactly symmetric (a matrix product need not round [i, j] and [j, i] alike). Only blocks
    on and below the diagonal are multiplied: a little over half of the work in large groups."""
    groups, n, _ = x.shape
    step = max(32, n // 6 // 32 * 32)  # round numbers suit the kernels of a matrix product
    edges = [*range(0, n - step // 2, step), n]  # the last block takes in a short rest
    if len(edges) < 3:
        square = x @ x.transpose(1, 2)
        return torch.minimum(square, square.transpose(1, 2))
    square = x.new_empty(groups, n, n)
    for i, j in itertools.pairwise(edges):
        below = x[:, i:j] @ x[:, :j].transpose(1, 2)
        corner = below[:, :, i:]
        square[:, i:j, :i] = below[:, :, :i]
        square[:, :i, i:j] = below[:, :, :i].transpose(1, 2)
        torch.minimum(corner, corner.transpose(1, 2), out=square[:, i:j, i:j])
    return square


def _block(rows: Tensor) -> int:
    # Never more than a quarter of the rows: what a block needs stays well below the size of the input.
    count, dim = rows.shape
    return max(1, min(_BLOCK.get(rows.device.type, 1 << 23) // max(1, dim), -(-count // 4)))
