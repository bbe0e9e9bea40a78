"""One pass on the tiny model: the right stages are entered, the methods act, and nothing is left behind."""

import pytest
import torch
from ticking import Ticking

from holitom_repro.latency.passes import ADDED, STAGES, run_pass
from holitom_repro.latency.settings import PRINTED, setting
from holitom.methods import FastV, HoliTom, HoliTomMerge
from holitom.types import Reduction


def stages_of(reduction, tiny, inputs, **options):
    return run_pass(tiny, reduction, inputs, Ticking(), staged=True, **options)


@pytest.mark.parametrize("row", [row for row, _ in PRINTED])
def test_the_stages_sum_to_the_total(row, tiny, inputs):
    reduction = None if row == "Vanilla" else setting(row, 0.25, "ov-7b", tiny.layers)
    done = stages_of(reduction, tiny, inputs)
    assert tuple(done.stages) == STAGES
    assert sum(done.stages.values()) == done.ttft


def test_each_stage_is_entered_where_it_happens(tiny, inputs):
    full = stages_of(None, tiny, inputs).stages
    assert all(full[name] == 0 for name in ADDED)
    assert all(full[name] > 0 for name in STAGES if name not in ADDED)
    outer = stages_of(Reduction("outer", HoliTom(), 0.25), tiny, inputs).stages
    assert outer["outer"] > 0 and outer["saliency"] > 0 and outer["inner"] == 0
    inside = stages_of(Reduction("inner", inner=(FastV(2, 0.5),)), tiny, inputs).stages
    assert inside["inner"] > 0 and inside["outer"] == inside["saliency"] == 0


def test_counters_prove_that_the_method_ran(tiny, inputs):
    reduction = Reduction("both", HoliTom(), 0.25, (HoliTomMerge(3, 0.5),))
    done = run_pass(tiny, reduction, inputs, Ticking(), new_tokens=2)
    assert done.stats.acted and dict(done.stats.calls) == {"outer": 1, "inner@3": 1}
    sizes = [n * tiny_row_bytes(tiny) for n in done.stats.last.cached_per_layer]
    assert list(done.kv_bytes) == sizes and sizes[3] < sizes[2]
    assert done.stages == {} and done.decode > 0


def tiny_row_bytes(loaded):
    text = loaded.config.text_config
    return 2 * 4 * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)


def test_marks_change_no_result(tiny, inputs):
    def logits(staged):
        seen = []
        handle = tiny.model.lm_head.register_forward_hook(lambda m, a, out: seen.append(out.clone()))
        run_pass(tiny, Reduction("x", HoliTom(), 0.25, (HoliTomMerge(3, 0.5),)), inputs, Ticking(), staged=staged)
        handle.remove()
        return seen[0]

    assert torch.equal(logits(True), logits(False))


def test_nothing_is_left_on_the_model(tiny, inputs):
    def hooks():
        modules = list(tiny.model.modules())
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules), [
            name for m in modules for name in ("forward", "get_video_features", "generate") if name in vars(m)
        ]

    before = hooks()
    stages_of(Reduction("x", HoliTom(), 0.25, (HoliTomMerge(3, 0.5),)), tiny, inputs)
    stages_of(None, tiny, inputs)
    with pytest.raises(RuntimeError, match="broken"):
        stages_of(Reduction("broken", _Broken(), 0.25), tiny, inputs)
    assert hooks() == before


class _Broken(HoliTom):
    def __call__(self, video, budget):
        raise RuntimeError("broken")
