"""One notebook as the body of a page: nbconvert with the template beside this file, then ``markup``."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from holitom_repro import paths

TEMPLATES = Path(__file__).parent / "template"
PROGRESS = re.compile(r"\d+%\|[^|]*\||\d+it \[|it/s\]|^\s*$")
WIDGET = "application/vnd.jupyter.widget-view+json"


@cache
def _exporter() -> Any:
    from nbconvert import HTMLExporter

    return HTMLExporter(template_name="holitom", extra_template_basedirs=[str(TEMPLATES)], anchor_link_text="")


def body(notebook: dict[str, Any]) -> str:
    """The cells as HTML, before links, tables and pictures are seen to (``markup.finish``)."""
    import nbformat

    node = nbformat.reads(json.dumps(cleaned(notebook)), as_version=4)  # joins lines that JSON keeps apart
    html, _ = _exporter().from_notebook_node(node)
    return html


def cleaned(notebook: dict[str, Any]) -> dict[str, Any]:
    """A copy without what means nothing on paper: progress bars, empty outputs, the place of the checkout."""
    made = deepcopy(notebook)
    made["metadata"].pop("widgets", None)
    for cell in made["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [kept for output in _joined(cell.get("outputs", [])) if (kept := _kept(output))]
    return made


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring pieces of one stream as one."""
    found: list[dict[str, Any]] = []
    for output in outputs:
        last = found[-1] if found else {}
        if output["output_type"] == "stream" and last.get("name") == output["name"]:
            last["text"] = _text(last["text"]) + _text(output["text"])
        else:
            found.append(output)
    return found


def _kept(output: dict[str, Any]) -> dict[str, Any] | None:
    """The output without progress bars and without absolute paths; None when nothing is left."""
    if output["output_type"] == "stream":
        text = _text(output["text"])
        if output["name"] == "stderr":
            lines = (line.split("\r")[-1] for line in text.split("\n"))
            text = "\n".join(line for line in lines if not PROGRESS.search(line))
        return {**output, "text": here(text)} if text.strip() else None
    if output["output_type"] == "error":
        return {**output, "traceback": [here(line) for line in output["traceback"]]}
    data = {kind: value for kind, value in output.get("data", {}).items() if kind != WIDGET}
    if list(data) == ["text/plain"] and WIDGET in output["data"]:
        return None
    data = {k: here(_text(v)) if k.startswith("text/") else v for k, v in data.items()}
    return {**output, "data": data} if data else None


def here(text: str) -> str:
    """Text with paths inside the checkout written from its root."""
    return text.replace(f"{paths.root()}/", "").replace(str(paths.root()), ".")


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)
