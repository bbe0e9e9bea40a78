"""One site for all tests of this folder: built from what is committed, and from three notebooks made here."""

from __future__ import annotations

import base64
import io
import json

import nbformat
import pytest
from PIL import Image, ImageDraw

from holitom_repro import paths
from holitom_repro.claims import Judged, Verdict, table_claims, trends
from holitom_repro.report import build

CELL = "0123456789abcdef"
RUN = {"papermill": {"end_time": "2026-01-02T03:04:05.6+00:00", "exception": None, "parameters": {"tier": "tiny"}}}


def picture() -> str:
    drawn = Image.new("RGB", (1400, 500), "white")
    ImageDraw.Draw(drawn).line((0, 0, 1400, 500), "navy", 9)
    packed = io.BytesIO()
    drawn.save(packed, "PNG", dpi=(200, 200))
    return base64.b64encode(packed.getvalue()).decode()


def executed(name: str) -> nbformat.NotebookNode:
    """A notebook of the kit as if a run had left these outputs in it."""
    made = nbformat.read(paths.root() / "notebooks" / f"{name}.ipynb", as_version=4)
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    output = nbformat.v4.new_output
    place = f"{paths.root()}/figures/tiny/{name}.png"
    code[1].outputs = [
        output("stream", name="stderr", text="cells:  10%|#         | 1/10\rcells: 100%|##########| 10/10\n"),
        output("stream", name="stdout", text=f"read {paths.root()}/data\n"),
        output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "0%|  | 0/132"}),
    ]
    code[2].outputs = [output("execute_result", {"image/png": picture(), "text/plain": place})]
    code[2].outputs[0].metadata = {"image/png": {"width": 700}}
    wide = "".join(f"<th>column {i}</th>" for i in range(30)), "".join(f"<td>{i}.25</td>" for i in range(29))
    html = (
        "<style>#T_a_row0_col1 { color: #8a8a8a; }</style><table border='1' id='T_a'><caption><b>A.</b> Wide.</caption>"
        f"<thead><tr>{wide[0]}</tr></thead><tbody><tr><td>At 10 %</td>{'<td></td>' * 29}</tr>"
        f"<tr><td>HoliTom</td>{wide[1]}</tr></tbody></table>"
    )
    code[3].outputs = [output("execute_result", {"text/html": html, "text/plain": "a table"})]
    made.metadata.update(RUN)
    return made


def claims() -> list[Judged]:
    """Derived ones, as they are; one measured claim with a record, and one of each other verdict."""
    found = [*table_claims("table1")[:12], *table_claims("table2")[:6]]
    declared = trends()[0]
    common = {
        "statement": "s",
        "place": "HoliTom, Table 1",
        "unit": "points",
        "tolerance": "0.5",
        "experiment": "table1",
    }
    measured = {"source": "measured", "tier": "tiny", "computed": 90.0, "low": 88.0, "high": 92.0}
    for number, verdict in enumerate(Verdict):
        beside = measured if verdict not in (Verdict.NOT_RUN, Verdict.QUOTED) else {"source": "quoted"}
        name = declared.id if number == 0 else f"made/{number}"
        reason = "the reason; ./reproduce.sh table1 --tier paper measures <it>"
        records = (CELL,) if number == 0 else ()
        found.append(Judged(id=name, verdict=verdict, reason=reason, records=records, **common, **beside))
    return found


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of a finished site."""
    runs = tmp_path_factory.mktemp("runs")
    (runs / "tiny" / "notebooks").mkdir(parents=True)
    (runs / "tiny" / "cells").mkdir()
    for name in ("01_method", "table1", "fig_tradeoff"):
        nbformat.write(executed(name), runs / "tiny" / "notebooks" / f"{name}.ipynb")
    broken = executed("table2")
    traceback = ["\x1b[31mValueError\x1b[0m: broken", f"{paths.root()}/src/holitom/x.py"]
    cell = next(cell for cell in broken.cells[6:] if cell.cell_type == "code")
    cell.outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="broken", traceback=traceback)]
    broken.metadata.papermill.exception = True
    nbformat.write(broken, runs / "tiny" / "notebooks" / "table2.ipynb")
    record = {"value": 90.0, "low": 88.0, "high": 92.0, "n": 1200, "model": "onevision", "benchmark": "tiny_long"}
    record |= {"frames": 32, "row": "HoliTom", "code": "c0de", "provenance": {"cpu": "a processor", "git": None}}
    (runs / "tiny" / "cells" / f"{CELL}.json").write_text(json.dumps(record))
    patch = pytest.MonkeyPatch()
    patch.setattr(paths, "runs", lambda *parts: runs.joinpath(*parts))
    try:
        start = build("tiny", runs / "report", judged=claims())
    finally:
        patch.undo()
    return start.parent
