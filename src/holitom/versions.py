"""Which releases of transformers the attaching works with."""

from __future__ import annotations

from importlib import metadata

from holitom.errors import CannotRun

MINIMUM = (5, 19)
"""transformers: ``generate`` takes encoded videos since 5.19; masks per layer came with 5.16."""
FORWARD_ONLY = (5, 17)
"""Bare forwards of LLaVA-OneVision work from here on, with embeddings instead of encoded videos: enough to time it."""


def require_transformers(found: str | None = None, minimum: tuple[int, int] = MINIMUM) -> None:
    """CannotRun where the installed transformers is older than ``minimum``, or absent."""
    found = found or installed("transformers")
    wanted = ".".join(map(str, minimum))
    if found is None or tuple(int(part) for part in found.split(".")[:2]) < minimum:
        raise CannotRun(
            f"transformers {found or '(none)'} is installed, and this needs {wanted} or newer: before, generate() "
            "takes no encoded videos",
            fix=f"pip install 'transformers>={wanted},<6'; for the original llava package and its transformers 4.51 "
            "see docs/llava.md",
        )


def installed(package: str) -> str | None:
    """The installed version without its local part (2.13.0+cpu is release 2.13.0), or None."""
    try:
        return metadata.version(package).split("+")[0]
    except metadata.PackageNotFoundError:
        return None
