"""What `detbox trace` does with recorded traces: show, query, graph, diff."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from detbox.cli.helptext import HelpFormatter
from detbox.cli.messages import say
from detbox.errors import UserError

Parser = type[argparse.ArgumentParser]

#: Characters of the line under the heading of a table's last column, at most.
_LAST = 40

_SELECTION = """\
selection (an event has to fit all that are given):
  --process 1.2          the process of this lineage with its descendants; a number
                         of the guest's without a point: that process (pid:N says so)
  --command '*cc1*'      processes that execute a command like this
  --call openat,%file    calls by name, or by class: {classes}
  --path '/usr/*.h'      calls about a file of this name, also through a descriptor
  --time 0.5-2           virtual seconds since the run's beginning; -2 and 0.5- are open
"""


def _parser(cls: Parser, action: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    return cls(
        prog=f"detbox trace {action}", description=description, epilog=epilog, allow_abbrev=False,
        formatter_class=HelpFormatter,
    )  # fmt: skip


def write(text: str) -> None:
    """Writes to standard output; what is no UTF-8 is spelled out."""
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode())
    sys.stdout.flush()


def show(cls: Parser, words: list[str]) -> int:
    """`detbox trace show`."""
    from pathlib import Path

    from detbox.recorder.read import Trace, joined
    from detbox.recorder.select import CLASSES, Selection
    from detbox.recorder.show import line

    classes = ", ".join(sorted(CLASSES))
    parser = _parser(cls, "show", "Prints a trace's events, one a line.", _SELECTION.format(classes=classes))
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--process", metavar="NAME", help="a process, by lineage or number")
    parser.add_argument("--command", metavar="GLOB", help="processes by their command line")
    parser.add_argument("--call", metavar="NAMES", help="calls and %%classes of calls, separated by commas")
    parser.add_argument("--path", metavar="GLOB", help="files by absolute path")
    parser.add_argument("--time", metavar="FROM-TO", help="virtual seconds")
    chosen = parser.parse_args(words)
    selection = Selection.of(chosen.process, chosen.command, chosen.call, chosen.path, chosen.time)
    trace = Trace(chosen.file)
    for event, threads in joined(trace):
        if selection.fits(event, threads):
            sys.stdout.write(line(event, threads).encode("utf-8", "backslashreplace").decode() + "\n")
    sys.stdout.flush()
    say_if_cut(trace)
    return 0


def query(cls: Parser, words: list[str]) -> int:
    """`detbox trace query`."""
    from pathlib import Path

    from detbox.recorder import database, tables
    from detbox.recorder.read import Trace
    from detbox.values import own_directory

    parser = _parser(cls, "query", "Answers an SQL query about a trace.  The tables:\n\n" + tables.schema())
    parser.add_argument("file", type=Path, metavar="FILE", nargs="?")
    parser.add_argument("sql", metavar="'SELECT …'", nargs="?")
    parser.add_argument("--examples", action="store_true", help="print queries to start from, and do nothing else")
    parser.add_argument("--tables", action="store_true", help="print the tables and their columns")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print a JSON array of objects")
    how.add_argument("--csv", action="store_true", help="print CSV with a line of headings")
    chosen = parser.parse_intermixed_args(words)
    if chosen.examples or chosen.tables:
        write(_examples() if chosen.examples else tables.schema())
        return 0
    if chosen.file is None or not chosen.sql:
        raise UserError("which query?", "detbox trace query FILE 'SELECT …'; --examples shows some")
    trace = Trace(chosen.file)
    base = database.opened(trace, Path(own_directory("cache", os.environb), "traces"))
    say_if_cut(trace)
    names, rows = database.query(base, chosen.sql)
    form = _json if chosen.json else _csv if chosen.csv else _table
    write(form(names, rows))
    return 0


def _examples() -> str:
    from detbox.recorder.tables import EXAMPLES

    return "\n".join(f"# {meaning}\ndetbox trace query FILE \"{text}\"\n" for meaning, text in EXAMPLES)


def _json(names: list[str], rows: Sequence[tuple[Any, ...]]) -> str:
    import json

    return json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=1, default=repr) + "\n"


def _csv(names: list[str], rows: Sequence[tuple[Any, ...]]) -> str:
    import csv
    import io

    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([names, *rows])
    return file.getvalue()


def _table(names: list[str], rows: Sequence[tuple[Any, ...]]) -> str:
    cells = [["" if value is None else str(value).replace("\n", "↵") for value in row] for row in rows]
    numeric = [all(isinstance(row[place], (int, float, type(None))) for row in rows) for place in range(len(names))]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    if not numeric[-1]:
        widths[-1] = min(widths[-1], _LAST)  # it need not line up with anything
    lines = []
    for row in [names, ["─" * width for width in widths], *cells]:
        words = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(words).rstrip() + "\n")
    return "".join(lines)


def graph(cls: Parser, words: list[str]) -> int:
    """`detbox trace graph`."""
    from pathlib import Path

    from detbox.report import graph as pictures
    from detbox.report import graph_svg

    description = (
        "Draws the processes of a trace: their tree, when each ran in virtual time, and what went\n"
        "from one to another: files, pipes, pairs of sockets.  Alike processes share a row, deep\ntrees are folded."
    )
    parser = _parser(cls, "graph", description)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="OUT.svg, or OUT.dot for Graphviz (default: SVG to standard output)"
    )
    parser.add_argument("--real-times", metavar="FILE", help="what `detbox trace --real-times` wrote")
    chosen = parser.parse_args(words)
    kind = Path(chosen.output).suffix if chosen.output else ".svg"
    if kind not in (".svg", ".dot"):
        raise UserError(f"{chosen.output}: what kind of picture?", "give a name that ends in .svg or .dot")
    found = pictures.read(chosen.file, chosen.real_times)
    text = graph_svg.draw(found) if kind == ".svg" else pictures.dot(found)
    say_if_cut(found.trace)
    if chosen.output is None:
        write(text)
        return 0
    try:
        Path(chosen.output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{chosen.output} cannot be written: {error.strerror}") from None
    return 0


def diff(cls: Parser, words: list[str]) -> int:
    """`detbox trace diff`."""
    from pathlib import Path

    from detbox.recorder.compare import first_divergence
    from detbox.recorder.read import Trace
    from detbox.report.causes import BY_CALL

    parser = _parser(
        cls, "diff", "Finds the first event in which two traces differ.",
        "exit status: 0 the traces are the same, 1 they differ",
    )  # fmt: skip
    parser.add_argument("files", type=Path, nargs=2, metavar="FILE")
    left, right = (Trace(path) for path in parser.parse_args(words).files)
    if left.description != right.description:
        say("the two traces are of different jobs")
    found = first_divergence(left, right)
    if found is None:
        for trace in (left, right):
            say_if_cut(trace)
        write("the traces are the same\n")
        return 0
    write("\n".join(found.lines(BY_CALL.get(found.call, ""))) + "\n")
    for trace, event in ((left, found.left), (right, found.right)):
        if event is None:
            say_if_cut(trace)
    return 1


def say_if_cut(trace: Any) -> None:
    """A message if the run could not close the file."""
    if not trace.complete:
        say(f"{os.fspath(trace.path)} ends early: the run was ended before it could close the file")


#: By the word after `detbox trace`.
ACTIONS: dict[str, Callable[[Parser, list[str]], int]] = {"show": show, "query": query, "graph": graph, "diff": diff}
