"""Did you mean: the nearest allowed word for a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, allowed: Iterable[str]) -> str:
    """`` (nearest: table1)`` when an allowed word is close enough, else an empty string."""
    close = get_close_matches(word.lower(), list(allowed), n=1, cutoff=0.5)
    return f" (nearest: {close[0]})" if close else ""
