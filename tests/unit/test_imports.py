"""Imports point one way: each package may use only what is below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "detbox"

# What each part may import, besides itself and the parts that everybody may use.
_EVERYBODY = {"bundle", "digests", "errors", "kernel", "records"}
_VALUES = {"decision", "machine"}
ALLOWED: dict[str, set[str]] = {
    "__init__": {"api"},
    "__main__": {"cli"},
    "bundle": set(),
    "errors": set(),
    "options": set(),
    "values": set(),
    "kernel": set(),
    "records": set(),
    "digests": set(),
    "decision": set(),
    "config": {"options", "values"},
    "images": {"values"},
    "spec": {"values", "cpu", "images"},
    "api": {"options"},
    "doctor": {"cpu"},
    "cpu": {"decision", "machine"},
    "counted": {"machine"},
    "guest": set(),
    "machine": {"decision"},
    "synth": {"cpu", *_VALUES},
    "handlers": {"cpu", "synth", *_VALUES},
    "policy": {"decision", "handlers"},
    "recorder": {"", *_VALUES},
    "spin": {"cpu", *_VALUES},
    "scheduler": _VALUES,
    "supervisor": {
        "counted",
        "cpu",
        "guest",
        "handlers",
        "policy",
        "recorder",
        "scheduler",
        "spec",
        "spin",
        "synth",
        *_VALUES,
    },
    "cache": {"", "handlers", "images", "spec", *_VALUES},
    "container": {"cache", "cpu", "guest", "handlers", "images", "policy", "spec", "supervisor", "synth", "values",
                  *_VALUES},  # fmt: skip
    "report": {"", "api", "container", "images", "recorder", "spec", *_VALUES},
    "deb": {"", "container", "images", "report", "spec", "values", *_VALUES},
    "cli": {
        "",
        "api",
        "cache",
        "config",
        "container",
        "deb",
        "doctor",
        "images",
        "options",
        "policy",
        "recorder",
        "report",
        "spec",
        "values",
    },
}

# What a thread and a process are is a value type like those of detbox.machine, wherever it is kept.
_VALUE_MODULES = {"detbox.supervisor.task"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str:
    """The part of detbox that a dotted name belongs to; "" is the package itself."""
    if module in _VALUE_MODULES:
        return "machine"
    return module.split(".")[1] if "." in module else ""


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """The dotted names that are imported at run time anywhere in a module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from names_of(node, package)
        else:
            yield from imported(node, package)


def names_of(node: ast.ImportFrom, package: str) -> Iterator[str]:
    module = node.module or ""
    if node.level:
        parents = package.split(".")
        module = ".".join(filter(None, [*parents[: len(parents) - node.level + 1], module]))
    if module == "detbox":
        yield from (f"detbox.{alias.name}" for alias in node.names)
    else:
        yield module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    own = part_of(dotted)
    assert own in ALLOWED, f"say in {Path(__file__).name} what {own} may import"
    package = dotted.removesuffix(".__init__") if path.name == "__init__.py" else dotted.rpartition(".")[0]
    used = {
        part_of(name) for name in imported(ast.parse(path.read_text()), package) if name.startswith("detbox")
    }
    forbidden = used - ALLOWED[own] - _EVERYBODY - {own}
    assert not forbidden, f"{dotted} imports {sorted(forbidden)}, which is not below {own}"


def test_the_rules_have_no_circle() -> None:
    """Following the rules never leads back: a depth-first walk meets no part that it is still inside of."""
    done: set[str] = set()

    def walk(part: str, inside: tuple[str, ...]) -> None:
        assert part not in inside, f"a circle: {' → '.join((*inside, part))}"
        if part in done:
            return
        for below in ALLOWED.get(part, set()) - {""}:
            walk(below, (*inside, part))
        done.add(part)

    for part in ALLOWED:
        walk(part, ())


def test_every_module_says_what_it_is() -> None:
    """One sentence at the top of each."""
    silent = [
        str(path)
        for path in MODULES
        if path.read_text() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def test_modules_can_be_read_in_one_sitting() -> None:
    long = {str(path): count for path in MODULES if (count := len(path.read_text().splitlines())) > 450}
    assert not long
