"""The verbs of the command line: each is a module with its parser, its help and its body."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import NoReturn

import detbox
from detbox.cli.helptext import HelpFormatter
from detbox.errors import UserError

_DESCRIPTION = """\
Runs programs deterministically: the same inputs give the same bytes, whatever
the time, the machine, its load or its user.
"""

_EXAMPLES = """\
examples:
  detbox run -- date                 the same date every time
  detbox run -- make -j4             a build of the current directory
  detbox verify --native -- make     proves it, and says what would have differed
  detbox doctor                      what this machine offers

`detbox VERB --help` says more about a verb.
"""


#: In the order of the help; each is the name of a module's beginning.
_VERBS = ("run", "verify", "cache", "image", "trace", "deb", "doctor", "syscalls")


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are ordinary user errors (argparse's status 2 is the guest's)."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"see `{self.prog} --help`")


def parser(first: str = "") -> _Parser:
    """The parser of command lines.  If ``first``, their first word, is a verb, nothing is made ready for the others."""
    parser = _Parser(
        prog="detbox",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"detbox {detbox.__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True)
    for verb in (first,) if first in _VERBS else _VERBS:
        importlib.import_module(f"detbox.cli.{verb}_cmd").add_parser(verbs)
    return parser


def parsed(words: Sequence[str], *, stdin_closed: bool) -> argparse.Namespace:
    """What a command line says; ``body`` is what is to be done, ``stdin_closed`` goes along.

    Raises UserError; SystemExit when it was asked for help.
    """
    return parser(words[0] if words else "").parse_args(words, argparse.Namespace(stdin_closed=stdin_closed))
