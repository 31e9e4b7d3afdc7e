"""How `--help` is laid out."""

from __future__ import annotations

import argparse
import functools
import os


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """As wide as the terminal.

    argparse makes a formatter for each option that is added, also where no help is shown; its own way to ask for the
    width imports shutil, and asks each time.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


@functools.cache
def _columns() -> int:
    declared = os.environ.get("COLUMNS", "")
    if declared.isdecimal() and int(declared):
        return int(declared)
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80
