"""Files of the checkout that a page links to: a copy of each in the site, so that no link leads out of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import unquote

from holitom_repro import paths

AS_TEXT = (".py", ".yaml", ".yml", ".md", ".toml", ".txt", ".csv", ".json", ".jsonl", ".sh", ".cff", "")
LARGEST = 500_000  # bytes


class Attachments:
    """The folder ``files/`` of one site."""

    def __init__(self, site: Path) -> None:
        self._folder = site / "files"

    def add(self, path: Path) -> str | None:
        """The address of the copy, which a browser shows as text; None for what is no small text file of the
        checkout."""
        path = path.resolve()
        root = paths.root().resolve()
        if not path.is_file() or not path.is_relative_to(root) or path.suffix not in AS_TEXT:
            return None
        if path.stat().st_size > LARGEST:
            return None
        name = "-".join(path.relative_to(root).parts)
        name = name if path.suffix in (".csv", ".json") else f"{name}.txt"
        self._folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, self._folder / name)
        return f"files/{name}"

    def follow(self, target: str) -> str | None:
        """The address of a link as it stands in a notebook, relative to notebooks/."""
        return self.add(paths.root() / "notebooks" / unquote(target.split("#")[0]))
