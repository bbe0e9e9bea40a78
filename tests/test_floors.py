"""The law of the packages: ``holitom`` never imports ``holitom_repro``; no file imports a later floor; no circles."""

import ast
import subprocess
import sys
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
        ["paths", "code", "machine", "sources"],
        ["papers", "records"],
        ["evaluation", "timing"],
        ["tiny", "paper_tier"],
        ["scores"],
        ["style"],
        ["claims", "tables"],
        ["method_page", "explore", "report", "convert", "demo", "notebooks", "serving"],
        ["__main__", "__init__"],
    ],
}
NEEDED = {"torch", "numpy", "transformers", "safetensors", "av"}
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


def test_the_algorithms_need_few_libraries_and_never_the_kit():
    for name, path in modules("holitom").items():
        others = {found.split(".")[0] for found in imports(path)} - sys.stdlib_module_names - {"holitom", "__future__"}
        allowed = NEEDED if name.split(".")[1:2] not in (["ops"], ["methods"]) else {"torch", "numpy"}
        assert others <= allowed | ({"llava"} if name.endswith("llava_package") else set()), (name, others)


@pytest.mark.parametrize("package", FLOORS)
def test_no_file_imports_a_later_floor_and_there_are_no_circles(package):
    known = edges(package)
    for name, found in known.items():
        for other in found:
            assert floor_of(package, other) <= floor_of(package, name), f"{name} imports {other}"
    list(TopologicalSorter(known).static_order())


def test_import_holitom_costs_no_torch():
    early = "import sys, holitom; sys.exit('torch' in sys.modules)"
    late = "import sys, holitom; sys.exit(not holitom.reduce_tokens.__module__ or 'torch' not in sys.modules)"
    for code in (early, late):
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_text_file_is_read_and_written_as_utf_8():
    """Whatever the locale, and what other programs say as well."""
    ruff = [sys.executable, "-m", "ruff", "check", "-q", "--preview", "--select", "PLW1514"]
    assert subprocess.run([*ruff, "src", "scripts", "notebooks"], cwd=SRC.parent, check=False).returncode == 0
    for path in [*SRC.rglob("*.py"), *SRC.parent.glob("scripts/**/*.py")]:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(("run", "Popen", "check_output")):
                given = {word.arg for word in call.keywords}
                assert not {"text", "universal_newlines"} & given, (path, call.lineno)
