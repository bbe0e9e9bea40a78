"""A golden file's Llama decoder, run layer by layer, with stages that choose tokens before their layer runs."""

import torch
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


def attention_row(layer, hidden, cos, sin):
    """Mean over heads of the last row of softmax(q k^T) in a layer that is entered by ``hidden`` [1, S, D]."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    shape = (1, hidden.shape[1], -1, attention.head_dim)
    q, k = (proj(normed).view(shape).transpose(1, 2) for proj in (attention.q_proj, attention.k_proj))
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return (q[0, :, -1:] @ k[0].mT * attention.scaling).float().softmax(-1).mean(0)[0]


@torch.no_grad()
def run_layers(golden, run, stages):
    """Per stage the kept visual ids in the original numbering and the states that enter its layer; the last states."""
    model = LlamaModel(LlamaConfig(**golden.params["config"], attn_implementation="eager")).eval()
    model.load_state_dict(
        {name.removeprefix("model."): value for name, value in golden.weights().items()}, strict=False
    )
    hidden, start = golden[run, "inputs_embeds"].float()[None], golden.runs[run]["image_start"]
    visual = torch.arange(start, start + golden.runs[run]["image_len"])
    alive, places, found, n0 = torch.arange(hidden.shape[1]), torch.arange(hidden.shape[1]), [], len(visual)
    for index, layer in enumerate(model.layers):
        for stage in [stage for stage in stages if stage.layer == index]:
            here = (layer, hidden, *model.rotary_emb(hidden, places[None]))
            row = attention_row(*(here if stage.score == "this" else before))
            ids, states = stage(hidden[0], row, torch.isin(alive, visual).nonzero().flatten(), n0)
            alive, hidden = alive[ids], states[None]
            places = torch.arange(len(ids)) if stage.positions == "contiguous" else places[ids]
            found.append((alive[torch.isin(alive, visual)], alive, states))
        before = (layer, hidden, *model.rotary_emb(hidden, places[None]))
        mask = torch.full((hidden.shape[1],) * 2, -torch.inf).triu(1)[None, None]
        hidden = layer(hidden, attention_mask=mask, position_embeddings=before[2:])
    return found, model.norm(hidden)[0]
