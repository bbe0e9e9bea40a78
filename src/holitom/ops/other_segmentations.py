"""Segmentations to compare HoliTom's optimum with: cuts where the picture changes, whatever that costs in tokens."""

from __future__ import annotations

import numpy as np

from holitom.errors import BadUsage
from holitom.ops.segmentation import Segments


def cut_at_changes(similar: np.ndarray, share: float | int) -> Segments:
    """[T - 1, N] booleans on the host -> a segment ends where less than ``share`` of the cells stay similar to the
    next frame.

    The similarity threshold of other papers, on the booleans that HoliTom has anyway: HieraVid's code cuts below 0.4,
    with its own cosine of 0.6 for a similar cell (Ethan16162/VidTokenPrune at 2733a94). A share of 0 never cuts, one
    above 1 always does. BadUsage for a negative share.
    """
    if share < 0:
        raise BadUsage(f"a share of {share} cells is negative", fix="use a share of similar cells, such as 0.4")
    changed = similar.mean(axis=1) < share if similar.shape[0] else np.zeros(0, dtype=bool)
    return segments_from(np.concatenate([[0], np.flatnonzero(changed) + 1]), similar)


def segments_from(first: np.ndarray, similar: np.ndarray) -> Segments:
    """The segments that begin at the frames ``first`` (ascending, from 0), with the cells that stay similar throughout
    each of them; a segment of one frame has none."""
    frames, cells = similar.shape[0] + 1, similar.shape[1]
    first = np.asarray(first, dtype=np.int64)
    last = np.append(first[1:], frames) - 1
    static = np.zeros((len(first), cells), dtype=bool)
    for segment, (a, b) in enumerate(zip(first, last, strict=True)):
        if b > a:
            static[segment] = similar[a:b].all(axis=0)
    return Segments(first, last, static, int((static * (last - first)[:, None]).sum()))
