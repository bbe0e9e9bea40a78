"""HoliTom with one step replaced, for the ablations: each class overrides a step of ``holitom.methods.HoliTom``.

None of these has a release. The setting without segments, and so without merging over time, is
``FixedWindows(max_window=1)``.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from holitom.methods.holitom import HoliTom
from holitom.ops.clusters import density_peaks, merge_members
from holitom.ops.segments import Segments, cut_at_changes, fixed_windows, static_means
from holitom.ops.tensors import ids_of, on, top_of_groups
from holitom.types import VideoFeatures

__all__ = ["CutAtChanges", "DynamicByClusters", "EachTheOtherWay", "FixedWindows", "StaticBySaliency"]


@dataclass(frozen=True)
class FixedWindows(HoliTom):
    """Step 1 with windows of ``max_window`` frames in place of the best cut."""

    def cut(self, redundant: np.ndarray) -> Segments:
        return fixed_windows(redundant, self.max_window)


@dataclass(frozen=True)
class CutAtChanges(HoliTom):
    """Step 1 with a segment ending where less than ``min_similar`` of the cells stay the same, as other papers do."""

    min_similar: float = 0.4

    def cut(self, redundant: np.ndarray) -> Segments:
        return cut_at_changes(redundant, self.min_similar)


@dataclass(frozen=True)
class StaticBySaliency(HoliTom):
    """Step 3 with the most salient static tokens, averaged over time alone, in place of clusters."""

    def merge_static(
        self, video: VideoFeatures, saliency: Tensor, segments: Segments, keep: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor]:
        means, first, length, sizes = static_means(video.tokens, segments, keep > 0)
        received = static_means(saliency[..., None], segments, keep > 0)[0][:, 0]
        segment = on(np.repeat(np.arange(len(sizes)), sizes), received)
        chosen = ids_of(top_of_groups(received, segment, on(keep[keep > 0], received)), int(keep.sum()))
        return first[chosen], means[chosen], length[chosen].float()


@dataclass(frozen=True)
class DynamicByClusters(HoliTom):
    """Step 4 with clusters for the share D of every frame's dynamic budget, of what saliency leaves; D = 1: all of it.

    The release has this as its D, 0 in every script; above 0 it fails on a shape.
    """

    cluster_share: float = 1.0

    def select_dynamic(
        self, video: VideoFeatures, saliency: Tensor, dynamic: np.ndarray, keep: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor]:
        salient = np.rint(keep * (1 - self.cluster_share)).astype(np.int64)
        clusters = keep - salient
        salient_ids, _, ones = super().select_dynamic(video, saliency, dynamic, salient)
        left = on(dynamic & (clusters > 0)[:, None], saliency).flatten().index_fill(0, salient_ids, False)
        sizes = np.where(clusters > 0, dynamic.sum(1) - salient, 0)
        rest, rows = ids_of(left, int(sizes.sum())), video.tokens.flatten(0, 1)
        centre, owner = density_peaks(rows[rest], sizes[clusters > 0], clusters[clusters > 0], self.k)
        chosen = ids_of(centre, int(clusters.sum()))
        merged, count = merge_members(rows[rest], owner, chosen, self.beta)
        ids, tokens = torch.cat([salient_ids, rest[chosen]]), torch.cat([rows[salient_ids].float(), merged])
        return ids, tokens, torch.cat([ones, count])


@dataclass(frozen=True)
class EachTheOtherWay(StaticBySaliency, DynamicByClusters):
    """Static cells by saliency and dynamic ones by clusters: both choices of HoliTom turned round."""
