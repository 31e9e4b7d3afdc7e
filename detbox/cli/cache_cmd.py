"""`detbox cache`: what the cache holds, and why a run was or was not answered from it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

from detbox.errors import UserError
from detbox.spec import cache_directory

if TYPE_CHECKING:
    from detbox.cache.store import Store

_DESCRIPTION = """\
Shows what `detbox run --cache` has kept and done.

  stats        sizes, hits and the time that they saved
  why [N]      for the last run (or the one before it, N=1, ...): hit, miss or not
               cacheable, and the reason
  list         the runs that are remembered, newest first
  show [N]     all that is known of one of them
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb to argparse's subparsers."""
    parser = verbs.add_parser(
        "cache",
        help="look into the cache of results",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("action", choices=sorted(_ACTIONS), metavar="stats|why|list|show")
    parser.add_argument("number", nargs="?", type=int, default=0, metavar="N", help="0 is the last run")
    parser.add_argument("--cache-dir", metavar="DIR", help="the cache's directory")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(body=run)


def run(arguments: argparse.Namespace) -> int:
    """The verb's body: returns the exit status."""
    from detbox.cache.store import Store

    store = Store(cache_directory(arguments.cache_dir, os.environb, os.getcwd()))
    try:
        value = _ACTIONS[arguments.action](store, arguments.number)
    finally:
        store.close()
    if arguments.json:
        text = json.dumps(value)
    else:
        text = _SHOWN.get(arguments.action, _table)(value)
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()
    return 0


def _stats(store: Store, number: int) -> dict[str, Any]:
    runs: list[dict[str, Any]] = store.runs()
    found: dict[str, Any] = dict(store.totals())
    for result in ("hit", "miss", "not cacheable"):
        found[f"runs: {result}"] = sum(run["result"] == result for run in runs)
    found["seconds saved"] = round(sum(run["saved"] for run in runs), 3)
    return found


def _list(store: Store, number: int) -> list[dict[str, Any]]:
    return store.runs()


def _one(store: Store, number: int) -> dict[str, Any]:
    runs = store.runs()
    if not 0 <= number < len(runs):
        raise UserError(f"there is no run {number} in the cache's memory", "see: detbox cache list")
    return runs[number]


_ACTIONS = {"stats": _stats, "why": _one, "list": _list, "show": _one}


def _table(value: dict[str, Any]) -> str:
    rows = []
    for name, entry in value.items():
        if isinstance(entry, dict):
            rows += [f"{name}:", *(f"  {key:<26} {item}" for key, item in entry.items())]
        else:
            rows.append(f"{name:<28} {entry}")
    return "\n".join(rows)


def _why(run: dict[str, Any]) -> str:
    lines = [_line(run)]
    if run["result"] == "hit":
        lines.append(f"  took {run['seconds']:.3f} s instead of {run['seconds'] + run['saved']:.3f} s")
    return "\n".join(lines)


def _lines(runs: list[dict[str, Any]]) -> str:
    return "\n".join(f"{number:>3}  {_line(run)}" for number, run in enumerate(runs)) or "no run is remembered"


def _line(run: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(run["at"]).isoformat(" ", "seconds")
    reason = f": {run['why']}" if run["why"] else ""
    command = " ".join(run["command"])
    return f"{when}  {command if len(command) < 60 else command[:57] + '...'}  {run['result']}{reason}"


_SHOWN: dict[str, Any] = {"why": _why, "list": _lines}
