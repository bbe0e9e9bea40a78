"""The errors a user can meet: what happened, and what to do about it."""


class KitError(Exception):
    """Base: one message, ``what`` and ``fix``; a command line prints it without a traceback and exits with
    ``exit_code``."""

    exit_code = 2

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what, fix)
        self.what, self.fix = what, fix

    def __str__(self) -> str:
        return f"{self.what}. {self.fix[:1].upper()}{self.fix[1:]}." if self.fix else f"{self.what}."


class CannotRun(KitError):
    """The request is fine, this machine or file cannot serve it: no GPU, no hub, too little memory, a full disk."""


class UnsupportedModel(CannotRun):
    """The model, or the way it is called, is one that token reduction cannot be attached to."""


class BadVideo(CannotRun):
    """The file is missing, is not a video, holds no picture, or is cut off before its first frame."""


class BadUsage(KitError, ValueError):
    """The request itself is wrong: an unknown name, a budget outside (0, 1], inputs that do not fit together."""

    exit_code = 3


def first_line(error: Exception) -> str:
    """What an error of a library says, short enough for a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
