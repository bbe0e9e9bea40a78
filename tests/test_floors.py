"""The law of the packages: ``holitom`` never imports ``holitom_repro``; no file imports a later floor; no circles."""

import ast
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
        ["paths", "machine", "pins", "suggestions", "usage", "refusals"],
        ["papers", "records"],
        ["evaluation", "timing"],
        ["tiny", "paper_tier"],
        ["scores"],
        ["style", "judging", "checks"],
        ["claims", "tables"],
        ["method_page", "explore", "report", "convert", "original", "demo", "notebooks", "doctor", "serving"],
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
    own_package = {name: {o for o in found if not name.startswith(o + ".")} for name, found in edges(package).items()}
    list(TopologicalSorter(own_package).static_order())


def test_import_holitom_costs_no_torch():
    import subprocess
    import sys

    code = "import sys, holitom; assert holitom.reduce_tokens.__module__ and 'torch' in sys.modules"
    early = "import sys, holitom; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", early], check=False).returncode == 0
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
