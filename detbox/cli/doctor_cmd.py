"""`detbox doctor`: says what this host offers, what follows, and how to mend what is missing."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from detbox.cli.helptext import HelpFormatter
from detbox.errors import HostError

_DESCRIPTION = """\
Tries out every kernel feature that detbox uses, each in a child process of its
own.  Exit status 0 if runs are possible here, 125 if not.
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb to argparse's subparsers."""
    parser = verbs.add_parser(
        "doctor",
        help="say what this host offers and how to mend what is missing",
        description=_DESCRIPTION,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(body=run)


def run(arguments: argparse.Namespace) -> int:
    """The verb's body: returns the exit status."""
    from detbox.doctor import as_json, as_table, examine

    findings = examine()
    sys.stdout.write(as_json(findings) if arguments.json else as_table(findings))
    sys.stdout.flush()
    return 0 if all(finding.usable for finding in findings) else HostError.status
