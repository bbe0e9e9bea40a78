"""The errors a user can meet, each with the exit code of the command line and the fix it names."""

from __future__ import annotations

from functools import partial
from typing import Any


class KitError(Exception):
    """Base: one message that says what happened and what to do; the command line prints it without a traceback."""

    exit_code = 2

    def __init__(self, what: str, *, fix: str = "") -> None:
        self.what = what
        self.fix = fix
        super().__init__(f"{what}. {fix[:1].upper()}{fix[1:]}." if fix else f"{what}.")

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and sent to other processes as it was made: ``args`` holds the whole message."""
        return partial(type(self), fix=self.fix), (self.what,), self.__dict__


class CannotRun(KitError):
    """The request is fine, this machine or file cannot serve it (exit 2): no GPU, no hub, broken video, full disk."""


class UnsupportedModel(CannotRun):
    """The model, or the way it is called, is one that token reduction cannot be attached to (exit 2)."""


class BadVideo(CannotRun):
    """The file is missing, is not a video, holds no picture, or is cut off before its first frame (exit 2)."""


class BadUsage(KitError, ValueError):
    """The request itself is wrong (exit 3): unknown target, tier, method or preset, a budget outside (0, 1]."""

    exit_code = 3
