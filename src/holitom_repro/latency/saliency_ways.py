"""Two ways to the attention that each patch receives: the library's, and one that writes no attention map.

The library (models.encoding.received_attention) computes float32 maps block by block for their column means: at the
size of OneVision-7B some gigabytes are written and read for 93 kB of result. The other way is exact as well, and takes
two calls of a flash kernel for what it gives beside its output, the logarithms of its sums:

    lse_i = log sum_j exp(s q_i.k_j)                          queries over keys, s the scale
    l2_j  = log sum_i exp(s (k_j.q_i + x_i)),  x_i = -lse_i/s  keys over queries, x carried by three further channels
    saliency_j = mean over heads of exp(l2_j) / P

because sum_i exp(s k_j.q_i - lse_i) is the column sum of the softmax. x is split into parts of the queries' own type,
so that half precision loses nothing of it. On a CPU this way is slower, so it is no default; on a GPU the record of
``try_ways`` decides (data/measured/NOTES.md).
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holitom.errors import KitError, UnsupportedModel
from holitom_repro.latency.passes import Inputs
from holitom_repro.latency.shapes import Loaded
from holitom_repro.latency.timeline import Clock
from holitom.models import adapter_for
from holitom.models.encoding import received_attention
from holitom.models.llava_onevision import frames_of

PARTS = {torch.float32: 1, torch.bfloat16: 3, torch.float16: 3}
"""How many numbers of a type hold a float32."""
WIDTHS = 8  # CUDA's flash kernels take heads whose width is a multiple


def received_by_sums(
    attention: nn.Module, hidden: Float[Tensor, "frames patches dim"]
) -> Float[Tensor, "frames patches"]:
    """What ``received_attention`` returns, from the sums of two flash attentions; nothing of [P, P] is ever written.

    Equal to 1e-6 of the mean in float32 and to 1e-4 in half precision. UnsupportedModel for a type without a flash
    kernel (float32 on CUDA, float64).
    """
    heads, width, scale = attention.num_heads, attention.head_dim, attention.scale
    q = attention.q_proj(hidden).unflatten(-1, (heads, width)).transpose(1, 2)
    k = attention.k_proj(hidden).unflatten(-1, (heads, width)).transpose(1, 2)
    if q.dtype not in PARTS or (q.is_cuda and q.dtype == torch.float32):
        raise UnsupportedModel(f"no flash attention for {q.dtype} on {q.device.type}", fix="use bfloat16 or float16")
    rest = _log_sums(q, k, scale).float() / -scale
    parts = []
    for _ in range(PARTS[q.dtype]):
        parts.append(rest.to(q.dtype))
        rest = rest - parts[-1].float()
    spare = -(width + len(parts)) % WIDTHS
    carried = torch.stack([*parts, *[torch.zeros_like(parts[0])] * spare], dim=-1)
    sums = _log_sums(torch.cat([k, torch.ones_like(carried)], -1), torch.cat([q, carried], -1), scale)
    return sums.float().exp().mean(1).div_(hidden.shape[1])


def _log_sums(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """log sum_j exp(scale q_i.k_j): [B, heads, S] in float32."""
    name = "_scaled_dot_product_flash_attention"
    kernel = getattr(torch.ops.aten, name if query.is_cuda else f"{name}_for_cpu").default
    return kernel(query, key, key, scale=scale)[1]


@torch.inference_mode()
def try_ways(loaded: Loaded, inputs: Inputs, clock: Clock, repeats: int = 20, warmup: int = 3) -> dict[str, Any]:
    """Both ways on what enters the tower's last attention for these pixels, in turns: {"maps": milliseconds (median),
    "flash": the same, or in words why not, "largest_difference": between the two, over the mean saliency, "frames",
    "repeats"}."""
    attention = adapter_for(loaded.model).vision_attention()
    frames, _ = frames_of(inputs.pixels)
    hidden = _entering(loaded, attention, frames)
    found: dict[str, Any] = {"frames": len(frames), "repeats": repeats}
    ways = {"maps": received_attention, "flash": received_by_sums}
    results: dict[str, Tensor] = {}
    for name, way in list(ways.items()):
        try:
            for _ in range(warmup):
                results[name] = way(attention, hidden)
        except (KitError, RuntimeError) as error:
            if name == "maps":
                raise
            found[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
            del ways[name]
    marks: dict[str, list[tuple[Any, Any]]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name in list(ways)[:: 1 if repeat % 2 else -1]:
            begin = clock.mark()
            ways[name](attention, hidden)
            marks[name].append((begin, clock.mark()))
        clock.settle()
    found |= {name: 1000 * statistics.median(clock.between(*pair) for pair in pairs) for name, pairs in marks.items()}
    if len(results) == len(ways) == 2:
        off = (results["maps"] - results["flash"]).abs().max() / results["maps"].mean()
        found["largest_difference"] = float(off)
    return found


def _entering(loaded: Loaded, attention: nn.Module, frames: Tensor) -> Tensor:
    """The states that enter this attention when the tower sees the frames."""
    held: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        held.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    handle = attention.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        adapter_for(loaded.model).core.vision_tower(frames, output_hidden_states=True, return_dict=True)
    finally:
        handle.remove()
    return held[0]
