"""The oracle of the seam tests: one forward without a cache over all tokens, with a mask and positions for every layer.

Dropping a token is the same as never reading it, so a reduced run, prefill and decoding together, must give the logits
of this forward. It knows nothing of the code under test.
"""

from __future__ import annotations

import torch


@torch.no_grad()
def embed(model, ids, videos):
    """Embeddings of a prompt [S]; ``videos``: for each run of video ids the rows that take its place."""
    table, video = model.get_input_embeddings(), model.config.video_token_id
    parts, rest, is_video = [], list(videos), (ids == video).tolist()
    for i, token in enumerate(ids):
        if not is_video[i]:
            parts.append(table(token)[None])
        elif i == 0 or not is_video[i - 1]:
            parts.append(rest.pop(0))
    return torch.cat(parts)


@torch.no_grad()
def stock_video(model, pixels):
    """Tokens [T * N, D] and newline [D] of one video, by the stock model."""
    rows = model.model.get_video_features(pixels).pooler_output[0]
    return rows[:-1], rows[-1]


@torch.no_grad()
def recompute(model, embeds, masks, positions):
    """Logits [S, V]: embeds [S, D]; masks: per layer [S, S] bool; positions: per layer [S], or [3, S] where there are
    three of each token."""
    text = model.model.language_model
    handles = []

    def use(layer):
        def hook(module, args, kwargs):
            allowed = masks[layer][None, None]
            if text.config._attn_implementation == "eager":
                lowest = torch.finfo(embeds.dtype).min
                allowed = torch.zeros(allowed.shape, dtype=embeds.dtype).masked_fill(~allowed, lowest)
            own = positions[layer]
            kwargs["attention_mask"] = allowed
            kwargs["position_embeddings"] = text.rotary_emb(args[0], own[:, None] if own.ndim == 2 else own[None])
            return args, kwargs

        return hook

    try:
        for i, module in enumerate(text.layers):
            handles.append(module.register_forward_pre_hook(use(i), with_kwargs=True))
        hidden = text(inputs_embeds=embeds[None], use_cache=False).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    return model.lm_head(hidden)[0]


def layout(layers, prompt, total, stages=(), numbers=None, prune_past=()):
    """Masks and positions for ``recompute``: causal, then per stage (layer, kept ids [K], positions policy).

    prompt: tokens of the prompt; total: with what follows; numbers [total]: positions before any stage; prune_past:
    layers of stages that also hide what they drop from earlier layers, once the prompt is over.
    """
    numbers = torch.arange(total) if numbers is None else numbers
    masks = [torch.ones(total, total).tril().bool() for _ in range(layers)]
    positions = [numbers.clone() for _ in range(layers)]
    for layer, kept, policy in stages:
        gone = torch.ones(total, dtype=torch.bool)
        gone[kept] = False
        gone[prompt:] = False
        for i in range(layer, layers):
            masks[i] &= ~gone
            # a dropped row may see itself: fully masked rows are undefined, and nobody reads this one
            masks[i] |= torch.diag(gone)
            if policy == "contiguous":
                alive = (~gone).nonzero().flatten()
                positions[i] = positions[i].clone()
                positions[i][alive] = numbers[0] + torch.arange(len(alive))
        if layer in prune_past:
            for i in range(layer):
                masks[i][prompt:] &= ~gone
    return masks, positions
