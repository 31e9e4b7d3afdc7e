"""Renews the parts of docs/ that are generated from the program; `make docs` runs it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from detbox import errors
from detbox.cli import syscalls_cmd
from detbox.doctor import feature_table
from detbox.options import OPTIONS
from detbox.policy import TABLE
from detbox.report.causes import CLASSES
from detbox.report.perturb import PERTURBATIONS

DOCS = Path(__file__).parents[1] / "docs"
_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def options_table() -> str:
    """The Markdown table of the options of a run."""
    rows = ["| option | meaning |", "| --- | --- |"]
    for option in OPTIONS:
        short = f"`-{option.short}`, " if option.short else ""
        value = f" {option.metavar}" if option.metavar else ""
        rows.append(f"| {short}`--{option.name}{value}` | {option.help} |".replace("none|", "none\\|"))
    rows.append("| `--config FILE` | read options from a TOML file |")
    return "\n".join(rows) + "\n"


def causes_table() -> str:
    """The Markdown table of classes of causes."""
    rows = [f"| {cls.name} | {cls.what} |" for cls in CLASSES]
    return "\n".join(["| class | what the difference comes from |", "| --- | --- |", *rows]) + "\n"


def perturbations_table() -> str:
    """The Markdown table of perturbations."""
    needs = {"root": "root", "tmpfs": "`/dev/shm`", "several": "several processors", "always": ""}
    rows = [f"| `{row.name.replace(' ', '-')}` | {row.changes} | {needs[row.needs]} |" for row in PERTURBATIONS]
    return "\n".join(["| name | what it changes | needs |", "| --- | --- | --- |", *rows]) + "\n"


BLOCKS: Mapping[str, Callable[[], str]] = {
    "options": options_table,
    "statuses": errors.status_table,
    "features": feature_table,
    "causes": causes_table,
    "perturbations": perturbations_table,
}


def pages() -> dict[Path, str]:
    """Every page with a generated part, as it ought to be."""
    rows = [syscalls_cmd.row_texts(row) for row in sorted(TABLE, key=lambda row: row.number)]
    wanted = {DOCS / "SYSCALLS.md": syscalls_cmd.markdown(rows)}
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text()
        if _BLOCK.search(text):
            wanted[path] = _BLOCK.sub(lambda match: match[1] + BLOCKS[match[2]]() + match[4], text)
    return wanted


def main() -> None:
    """Writes what is not current."""
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"renewed {path.name}")


if __name__ == "__main__":
    main()
