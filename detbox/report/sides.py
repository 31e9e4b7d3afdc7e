"""Two contents side by side as HTML: texts by lines, with the words that differ marked; bytes in hexadecimal."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence

from detbox.report.differ import as_text
from detbox.report.shown import markup

#: Of each content: lines that are compared, rows that are shown, characters of a line, and rows of bytes.
_LINES, _ROWS, _WIDTH, _HEX_ROWS = 4000, 120, 400, 24
_CONTEXT = 3
_BYTES = 16  # in a row
_WORDS = re.compile(r"\w+|\s+|.")


def sides(left: bytes, right: bytes, names: tuple[str, str]) -> str:
    """A table with ``names`` above the two; what is too long is cut, and a note says so."""
    one, other = as_text(left), as_text(right)
    if one is None or other is None or one.splitlines() == other.splitlines():
        return _table("hex", names, list(_hexadecimal(left, right)), _note_of_bytes(left, right))
    lines, others = one.splitlines(), other.splitlines()
    rows = list(_text_rows(lines[:_LINES], others[:_LINES]))
    notes = []
    if len(rows) > _ROWS:
        notes.append(f"{len(rows) - _ROWS} more rows are not shown")
    if max(len(lines), len(others)) > _LINES:
        notes.append(f"the first {_LINES} of {max(len(lines), len(others))} lines were compared")
    return _table("text", names, rows[:_ROWS], "; ".join(notes))


def _table(kind: str, names: tuple[str, str], rows: Sequence[str], note: str) -> str:
    said = f'<p class="note">{markup(note)}</p>' if note else ""
    head = f"<thead><tr><th></th><th>{names[0]}</th><th></th><th>{names[1]}</th></tr></thead>"
    return f'<div class="scroll"><table class="sides {kind}">{head}<tbody>{"".join(rows)}</tbody></table></div>{said}'


def _row(style: str, numbers: tuple[object, object], cells: tuple[str, str]) -> str:
    marks = ("", "") if style == "same" else (" class=left", " class=right")
    return (
        f'<tr class="{style}"><td class=at>{numbers[0]}</td><td{marks[0]}>{cells[0]}</td>'
        f"<td class=at>{numbers[1]}</td><td{marks[1]}>{cells[1]}</td></tr>"
    )


def _text_rows(left: Sequence[str], right: Sequence[str]) -> Iterator[str]:
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=len(left) > 500)
    for number, group in enumerate(matcher.get_grouped_opcodes(_CONTEXT)):
        if number or group[0][1]:
            yield '<tr class="gap"><td></td><td>⋯</td><td></td><td>⋯</td></tr>'
        for tag, i, i_end, j, j_end in group:
            for step in range(max(i_end - i, j_end - j)):
                x = left[i + step] if i + step < i_end else None
                y = right[j + step] if j + step < j_end else None
                numbers = ("" if x is None else i + step + 1, "" if y is None else j + step + 1)
                if tag == "equal":
                    yield _row("same", numbers, (_cut(x or ""), _cut(y or "")))
                else:
                    yield _row("changed", numbers, _inline(x, y))


def _cut(line: str) -> str:
    return markup(line[:_WIDTH]) + ("…" if len(line) > _WIDTH else "")


def _inline(x: str | None, y: str | None) -> tuple[str, str]:
    """Both lines, with the words that differ marked; cut around the first of those if they are long."""
    if x is None or y is None:
        return tuple("" if line is None else f"<mark>{_cut(line)}</mark>" for line in (x, y))  # type: ignore[return-value]
    start = next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), min(len(x), len(y)))
    start = max(0, start - _WIDTH // 4) if max(len(x), len(y)) > _WIDTH else 0
    words = [list(map(str, _WORDS.findall(line[start : start + _WIDTH]))) for line in (x, y)]
    cells = ["…" if start else ""] * 2
    for tag, i, i_end, j, j_end in difflib.SequenceMatcher(None, words[0], words[1], autojunk=False).get_opcodes():
        for side, part in enumerate((words[0][i:i_end], words[1][j:j_end])):
            text = markup("".join(part))
            cells[side] += text if tag == "equal" or not text else f"<mark>{text}</mark>"
    ends = ["…" if len(line) > start + _WIDTH else "" for line in (x, y)]
    return cells[0] + ends[0], cells[1] + ends[1]


def _first(left: bytes, right: bytes) -> int:
    """Where two contents begin to differ.  Halving compares large blocks at once."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle)
    return low


def _note_of_bytes(left: bytes, right: bytes) -> str:
    at = _first(left, right)
    return f"{len(left)} and {len(right)} bytes; the first that differs is byte {at} ({at:#x})"


def _hexadecimal(left: bytes, right: bytes) -> Iterator[str]:
    """Rows of bytes from the one before the first difference on."""
    start = max(0, _first(left, right) // _BYTES - 1) * _BYTES
    for place in range(start, min(start + _HEX_ROWS * _BYTES, max(len(left), len(right))), _BYTES):
        one, other = left[place : place + _BYTES], right[place : place + _BYTES]
        style = "same" if one == other else "changed"
        yield _row(style, (f"{place:08x}", f"{place:08x}"), (_bytes(one, other), _bytes(other, one)))


def _bytes(data: bytes, other: bytes) -> str:
    """A row of bytes: hexadecimal, then as characters; those that the other row has not are marked."""
    words, chars = [], []
    for i in range(_BYTES):
        if i >= len(data):
            words.append("  ")
            continue
        char = markup(chr(data[i])) if 32 <= data[i] < 127 else "."
        same = data[i : i + 1] == other[i : i + 1]
        words.append(f"{data[i]:02x}" if same else f"<mark>{data[i]:02x}</mark>")
        chars.append(char if same else f"<mark>{char}</mark>")
    return " ".join(words) + "  " + "".join(chars)
