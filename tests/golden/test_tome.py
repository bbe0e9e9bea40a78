import pytest
import torch
from loader import Golden, cases

from holitom.methods.tome import bipartite_matching


@pytest.mark.parametrize(("name", "run"), cases("tome_merge"))
def test_rounds_equal_the_release(name, run):
    golden = Golden(name)
    setting, guarded = golden.runs[run], golden.runs[run]["class_token"]
    values = {part: golden[run, part] for part in ("x", "metric")}
    size, source = golden[run, "size"], torch.eye(len(values["x"]))
    for j, wanted in enumerate(setting["r"]):
        away = max(0, min(wanted, (len(size) - guarded) // 2))  # a round merges half at most
        into, order = bipartite_matching(values["metric"][None], torch.tensor([away]), class_token=guarded)
        belongs = (order[0, : len(size) - away, None] == into[0]).float()
        weight = belongs * size
        size, source = weight.sum(1), belongs @ source
        values = {part: weight @ value / size[:, None] for part, value in values.items()}
        for part, value in {**values, "size": size}.items():
            torch.testing.assert_close(value, golden[run, f"round{j}/{part}"], atol=1e-5, rtol=0)
    assert torch.equal(source.to(torch.uint8), golden[run, "source"])
