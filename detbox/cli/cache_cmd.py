"""`detbox cache`: what the cache holds, and why a run was or was not answered from it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

from detbox.cli import cache_actions
from detbox.cli.helptext import HelpFormatter
from detbox.errors import UserError
from detbox.values import cache_directory

if TYPE_CHECKING:
    from detbox.cache.store import Store

_DESCRIPTION = "Shows and looks after what `detbox run --cache` has kept and done."
_EXAMPLES = """\
examples:
  detbox cache why                        the last run: hit or miss, and what had changed
  detbox cache gc --max-size 2G           keep what was used last
  detbox cache export results.tar         and elsewhere: detbox cache import results.tar

`detbox cache ACTION --help` says more about an action.
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb to argparse's subparsers."""
    parser = verbs.add_parser(
        "cache",
        help="look into the cache of results, and look after it",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    _add(actions, "stats", "sizes, and across all runs: hits, misses, time saved, bytes", _stats, _table)
    why = _add(actions, "why", "for a run: hit, miss or not cacheable, and the reason", _one, _why)
    why.add_argument("number", nargs="?", type=int, default=0, metavar="N", help="0 (or none) is the last run")
    _add(actions, "runs", "the runs that are remembered, newest first", _runs, _lines)
    for action in cache_actions.ACTIONS:
        action.add_arguments(_add(actions, action.name, action.help, action.body, action.text or _table))


def _add(actions: Any, name: str, help_text: str, body: Any, text: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=help_text, description=help_text)
    parser.add_argument("--cache-dir", metavar="DIR", help="the cache's directory")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(body=run, cache_action=(body, text))
    return parser


def run(arguments: argparse.Namespace) -> int:
    """The verb's body: returns the exit status."""
    from detbox.cache.store import Store

    body, shown = arguments.cache_action
    store = Store(cache_directory(arguments.cache_dir, os.environb, os.getcwd()))
    try:
        value = body(store, arguments)
    finally:
        store.close()
    text = json.dumps(value) if arguments.json else shown(value)
    # An archive on standard output must not be followed by a report.
    stream = sys.stderr if getattr(arguments, "file", None) == "-" else sys.stdout
    stream.write(text.rstrip("\n") + "\n")
    stream.flush()
    return 1 if isinstance(value, dict) and value.get("problems") else 0


def _stats(store: Store, arguments: argparse.Namespace) -> dict[str, Any]:
    counts = store.counts()
    found: dict[str, Any] = {"directory": store.directory, **store.totals()}
    for result in ("hit", "miss", "not cacheable"):
        found[f"runs: {result}"] = int(counts.get(f"runs: {result}", 0))
    found["seconds saved"] = round(counts.get("seconds saved", 0), 3)
    for name in ("remote bytes received", "remote bytes sent"):
        found[name] = int(counts.get(name, 0))
    if store.trouble:
        found["trouble"] = store.trouble
    return found


def _runs(store: Store, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    return store.runs()


def _one(store: Store, arguments: argparse.Namespace) -> dict[str, Any]:
    from detbox.cache.nearest import explained

    runs = store.runs()
    if not 0 <= arguments.number < len(runs):
        raise UserError(f"there is no run {arguments.number} in the cache's memory", "see: detbox cache runs")
    return explained(runs[arguments.number], runs[arguments.number + 1 :])


def _table(value: dict[str, Any]) -> str:
    rows = []
    for name, entry in value.items():
        if isinstance(entry, dict):
            rows += [f"{name}:", *(f"  {key:<26} {item}" for key, item in entry.items())]
        elif isinstance(entry, list):
            rows += [f"{name}:", *(f"  {item}" for item in entry)] if entry else []
        else:
            rows.append(f"{name:<28} {entry}")
    return "\n".join(rows)


def _executions(executions: list[dict[str, Any]]) -> list[str]:
    """The programs inside of a run: those that were answered from the cache as a number, the others one by one."""
    if not executions:
        return []
    results = [one["result"] for one in executions]
    counts = ", ".join(f"{results.count(name)} {name}" for name in ("hit", "miss", "not cacheable"))
    lines = [f"  programs inside: {counts}"]
    for one in executions:
        if one["result"] != "hit":
            command = " ".join(one["command"])
            shown = command if len(command) < 60 else command[:57] + "..."
            lines.append(f"    {shown.splitlines()[0] if shown else '':<60} {one['result']}: {one['why']}")
    return lines


def _why(run: dict[str, Any]) -> str:
    lines = [_line(run)]
    if run["result"] == "hit":
        lines.append(f"  took {run['seconds']:.3f} s instead of {run['seconds'] + run['saved']:.3f} s")
    if run.get("remote trouble"):
        lines.append(f"  remote cache: {run['remote trouble']}")
    lines += _executions(run.get("executions", []))
    return "\n".join(lines)


def _lines(runs: list[dict[str, Any]]) -> str:
    return "\n".join(f"{number:>3}  {_line(run)}" for number, run in enumerate(runs)) or "no run is remembered"


def _line(run: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(run["at"]).isoformat(" ", "seconds")
    reason = f": {run['why']}" if run["why"] else ""
    command = " ".join(run["command"])
    return f"{when}  {command if len(command) < 60 else command[:57] + '...'}  {run['result']}{reason}"
