"""HoliTom as plain loops: one cell, one pair, one token at a time, straight from the description of the algorithm; and
what the loops of other methods need. Slow on purpose. The batched code must give the same tokens.
"""

import math

import torch


def segment(similar, frames, cells, max_window=1024):
    """similar[t][n]: whether cell n stays the same from t to t + 1. -> [(first, last)], tokens removed."""
    best, start = [0] * frames, list(range(frames))
    for end in range(frames):
        best[end] = best[end - 1] if end else 0
        static = [True] * cells
        for first in range(end - 1, max(-1, end - max_window), -1):
            static = [static[n] and similar[first][n] for n in range(cells)]
            gain = sum(static) * (end - first)
            before = best[first - 1] if first else 0
            if before + gain > best[end]:
                best[end], start[end] = before + gain, first
    segments, end = [], frames - 1
    while end >= 0:
        segments.insert(0, (start[end], end))
        end = start[end] - 1
    return segments, best[-1]


def peak_scores(square, order, density):
    """density * distance to the nearest row of higher order, of equal ones the earlier; for the first the largest
    distance. square [n][n]: squared distances."""
    n, score = len(square), []
    for i in range(n):
        denser = [square[i][j] for j in range(n) if (order[j], -j) > (order[i], -i)]
        score.append(density[i] * math.sqrt(min(denser) if denser else max(map(max, square))))
    return score


def squared_distances(rows):
    return (rows.double()[:, None] - rows.double()[None]).square().sum(-1) / rows.shape[1]


def spacings(square, k):
    """Mean squared distance to the k nearest rows, itself among them."""
    return square.sort(1).values[:, :k].mean(1)


def best(score, count):
    """Ids of the highest scores, ascending; of equal ones the first."""
    return sorted(sorted(range(len(score)), key=lambda i: (-float(score[i]), i))[:count])


def density_peaks(rows, count, k):
    """-> (ids of ``count`` centres ascending, {centre: its members})."""
    square = squared_distances(rows)
    density = (-spacings(square, min(k, count))).exp().tolist()
    centres = best(peak_scores(square.tolist(), density, density), count)
    members = {centre: [] for centre in centres}
    for i in range(len(rows)):
        if i not in members:
            members[min(centres, key=lambda centre: (float(square[i, centre]), centre))].append(i)
    return centres, members


def merged(rows, centre, members, beta):
    if not members:
        return rows[centre]
    if beta is None:
        return rows[[centre, *members]].mean(0)
    return beta * rows[centre] + (1 - beta) * rows[members].mean(0)


def outer(tokens, saliency, budget, tau=0.8, beta=0.6, k=7, max_window=1024):
    """-> {(frame, cell): (token [D], size)} in the order of the tokens."""
    frames, cells, _ = tokens.shape
    similar = (torch.cosine_similarity(tokens[:-1].float(), tokens[1:].float(), dim=-1) > torch.tensor(tau)).tolist()
    segments, removed = segment(similar, frames, cells, max_window)
    ratio, found = min(budget / ((frames * cells - removed) / (frames * cells)), 1), {}
    for first, last in segments:
        static = [n for n in range(cells) if last > first and all(similar[t][n] for t in range(first, last))]
        dynamic = [n for n in range(cells) if n not in static]
        count = round(len(static) * ratio)
        if count:
            means = tokens[first : last + 1, static].float().mean(0).to(tokens.dtype)
            centres, members = density_peaks(means, count, k)
            for i in centres:
                row = merged(means.float(), i, members[i], beta).to(tokens.dtype)
                found[first, static[i]] = row, (last - first + 1) * (1 + len(members[i]))
        for t in range(first, last + 1):
            for i in best(saliency[t, dynamic], math.ceil(len(dynamic) * ratio)):
                found[t, dynamic[i]] = tokens[t, dynamic[i]], 1
    return found


def fold(hidden, score, visual, ratio, average="running"):
    """The inner stage: -> (kept ids, their rows), one visual token folded after the other."""
    visual, rows = visual.tolist(), hidden.float()
    kept = [visual[i] for i in best(score[visual], max(1, round(len(visual) * (1 - ratio))))]
    state, weight = {v: rows[v] for v in kept}, dict.fromkeys(kept, 1)
    for v in (v for v in visual if v not in kept):
        alike = torch.cosine_similarity(rows[v][None], rows[kept], eps=1e-12).tolist()
        target = kept[alike.index(max(alike))]
        state[target] = (state[target] * weight[target] + rows[v]) / (weight[target] + 1)
        weight[target] += average == "mean"
    ids = [i for i in range(len(hidden)) if i not in visual or i in state]
    return ids, torch.stack([state[i].to(hidden.dtype) if i in state else hidden[i] for i in ids])
