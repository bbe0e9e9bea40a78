"""The law of the packages: ``holitom`` never imports ``holitom_repro``; no file imports a later floor; no circles."""

import ast
import json
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
FLOORS = {
    "holitom": [
        ["errors", "types"],
        ["ops", "flops", "video"],
        ["methods"],
        ["models"],
        ["attach"],
        ["__init__"],
    ],
    "holitom_repro": [
        ["paths", "code", "machine"],
        ["papers", "records"],
        ["evaluation", "timing"],
        ["tiny", "paper_tier"],
        ["scores"],
        ["style", "judging"],
        ["claims", "tables"],
        ["method_page", "explore", "report", "convert", "demo", "notebooks", "doctor", "serving"],
        ["__main__", "__init__"],
    ],
}
NEEDED = {"torch", "numpy", "transformers", "safetensors", "av", "huggingface_hub"}
"""What the package ``holitom`` may import beside the standard library."""


def modules(package):
    return {
        ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((SRC / package).rglob("*.py"))
    }


def imports(path):
    """Every module name that a file imports, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def edges(package):
    known = modules(package)
    return {
        name: {found for found in imports(path) if found in known} - {name, package} for name, path in known.items()
    }


def floor_of(package, name):
    part = [*name.split("."), "__init__"][1]
    found = [number for number, floor in enumerate(FLOORS[package]) if part in floor]
    assert found, f"{name} stands on no floor"
    return found[0]


def test_the_algorithms_know_nothing_of_the_kit():
    for name, path in modules("holitom").items():
        assert not [found for found in imports(path) if found.split(".")[0] == "holitom_repro"], name


def test_the_algorithms_need_few_libraries():
    import sys

    for name, path in modules("holitom").items():
        others = {found.split(".")[0] for found in imports(path)} - sys.stdlib_module_names - {"holitom", "__future__"}
        allowed = NEEDED if name.split(".")[1:2] not in (["ops"], ["methods"]) else {"torch", "numpy"}
        assert others <= allowed | ({"llava"} if name.endswith("llava_package") else set()), (name, others)


@pytest.mark.parametrize("package", FLOORS)
def test_no_file_imports_a_later_floor(package):
    for name, found in edges(package).items():
        for other in found:
            assert floor_of(package, other) <= floor_of(package, name), f"{name} imports {other}"


@pytest.mark.parametrize("package", FLOORS)
def test_there_are_no_circles(package):
    list(TopologicalSorter(edges(package)).static_order())


def test_import_holitom_costs_no_torch():
    import subprocess
    import sys

    code = "import sys, holitom; assert holitom.reduce_tokens.__module__ and 'torch' in sys.modules"
    early = "import sys, holitom; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", early], check=False).returncode == 0
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_text_file_is_read_and_written_as_utf_8():
    """Whatever the locale, and what other programs say as well."""
    root = SRC.parent
    texts = {
        path: path.read_text(encoding="utf-8") for name in ("src", "scripts") for path in root.glob(f"{name}/**/*.py")
    }
    for path in root.glob("notebooks/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts[path] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for path, text in texts.items():
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            given, values = {word.arg for word in call.keywords}, [ast.unparse(one) for one in call.args]
            binary = any("b" in value for value in values if value[:1] == "'" and len(value) < 6)
            of_text = name in ("read_text", "write_text") or (name == "open" and not binary)
            of_text &= ast.unparse(call.func) not in ("av.open", "os.open", "Image.open")
            assert not of_text or "encoding" in given, f"{path.relative_to(root)}, line {call.lineno}"
            assert not {"text", "universal_newlines"} & given or name not in ("run", "Popen", "check_output"), (
                path,
                call.lineno,
            )
