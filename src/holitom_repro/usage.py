"""The parser of every command line of the kit: a mistake is an error of the kit, not the end of the process."""

from __future__ import annotations

import argparse
from typing import NoReturn

from holitom.errors import BadUsage


class Parser(argparse.ArgumentParser):
    """``argparse``'s, but BadUsage (exit code 3) with the way to the help instead of leaving with code 2."""

    def error(self, message: str) -> NoReturn:
        raise BadUsage(message, fix=f"{self.prog} --help shows what is allowed")
