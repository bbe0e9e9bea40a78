"""What torch itself counts while a model runs, which the formulas of ``holitom.flops`` are held against."""

import math
from collections.abc import Mapping

import torch
from torch.utils.flop_counter import FlopCounterMode


def measured_flops(run, inputs=()):
    """FLOPs that torch executes in ``run(**inputs)`` or ``run(*inputs)``, without gradients (FlopCounterMode).

    Attention kernels are counted here, because torch 2.13 leaves the CPU's out and refuses shared key-value heads; like
    torch's own count it takes the full score matrix: compare with ``LLMShape.exact(..., causal=False)``.
    """

    def attention(query, key, value, *_, **__):
        return 2 * math.prod(query[:3]) * key[-2] * (query[3] + value[-1])

    kernels = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    kernels = (getattr(torch.ops.aten, f"_scaled_dot_product_{name}", None) for name in kernels)
    counter = FlopCounterMode(display=False, custom_mapping={kernel: attention for kernel in kernels if kernel})
    with torch.no_grad(), counter:
        run(**inputs) if isinstance(inputs, Mapping) else run(*inputs)
    return float(counter.get_total_flops())
