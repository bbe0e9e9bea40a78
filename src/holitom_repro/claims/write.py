"""``python -m holitom_repro.claims.write``: data/papers/claims.yaml from the printed numbers, trends and headlines."""

from __future__ import annotations

from holitom_repro.claims import entries
from holitom_repro.results import write_atomic


def current() -> str:
    """What the file should hold; claims that it has keep their numbers."""
    held = {one.name: one.id for one in entries.entries()} if entries.path().is_file() else {}
    return entries.text(entries.made(held))


def main() -> int:
    write_atomic(entries.path(), current())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
