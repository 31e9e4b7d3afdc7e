"""Draws the graph of a run as SVG: one row for each process, a bar of virtual time, arcs for files."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detbox.report.graph import Graph, Node
    from detbox.report.graph_flows import Flow

_ROW, _TOP, _BOTTOM = 20, 64, 34
_TREE, _BARS, _TEXT = 470, 330, 180  # widths: tree with commands, bars of time, durations
_INDENT, _DEEPEST = 16, 14
_LEFT = 16
_ARCS = _LEFT + _TREE + _BARS + _TEXT + 10
_LANE, _LANES = 13, 12
_CHARS = 7.25  # width of a character of 12 px monospace
_MAX_FLOWS = 30
_FILES = _ARCS + _LANE * (_LANES + 1) + 8  # where the names of files begin
_NAMES = 260  # their width

GREEN, PURPLE = "#2e7d5b", "#7b4fb5"  # files, pipes

_STYLE = f"""
svg {{ background: #fff; font: 12px "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #1b1f24; }}
.title {{ font-size: 14px; font-weight: bold; }} .dim {{ fill: #6a737d; }} .bad {{ fill: #b3261e; }}
.branch {{ stroke: #b6bec8; fill: none; }} .stripe {{ fill: #f5f7f9; }} .grid {{ stroke: #e1e5ea; }}
.bar {{ fill: #5b8def; }} .bar.many {{ fill: #9db9f5; }} .bar.failed {{ fill: #d9776f; }}
.flow {{ stroke: {GREEN}; fill: none; stroke-width: 1.2; opacity: .75; }}
.file {{ fill: {GREEN}; }} .pipe {{ fill: {PURPLE}; }}
.flow.piped {{ stroke: {PURPLE}; stroke-dasharray: 5 2; }}
.flow:hover {{ stroke: #d08700; stroke-width: 3; opacity: 1; }}
"""


def draw(graph: Graph) -> str:
    """A whole SVG document."""
    rows = [pair for root in graph.roots for pair in root.walk()]
    place = {id(node): number for number, (node, _) in enumerate(rows)}
    flows = sorted(graph.flows, key=lambda flow: -len(flow.paths) - len(flow.pipes))[:_MAX_FLOWS]
    flows.sort(key=lambda flow: abs(place[id(flow.source)] - place[id(flow.target)]))
    height = _TOP + len(rows) * _ROW + _BOTTOM
    width = _FILES + _NAMES if flows else _ARCS + 10
    first = min((node.start for node, _ in rows), default=0.0)
    last = max((node.end for node, _ in rows), default=0.0)
    span = max(last - first, 1e-9)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img">',
        f"<title>{_text(graph.title)}</title><style>{_STYLE}</style>",
        f"<defs>{_tip('tip', GREEN)}{_tip('piped', PURPLE)}</defs>",
    ]
    parts += _head(graph, len(rows), span, height, bool(flows))
    for number, (node, depth) in enumerate(rows):
        parts += _row(node, depth, number, first, span, width)
    parts += _branches(rows, place)
    parts += _arcs(flows, place, len(graph.flows))
    return "\n".join([*parts, "</svg>", ""])


def _tip(name: str, colour: str) -> str:
    """The head of an arrow."""
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{colour}"/></marker>'
    )


def _y(number: int) -> float:
    return _TOP + number * _ROW + _ROW / 2


def _text(text: str) -> str:
    clean = text.encode("utf-8", "backslashreplace").decode()
    return escape("".join(char if char.isprintable() else "·" for char in clean))


def _head(graph: Graph, rows: int, span: float, height: int, flows: bool) -> list[str]:
    from detbox.report.graph import seconds

    title = graph.title if len(graph.title) <= 100 else graph.title[:99] + "…"
    word = "process" if graph.processes == 1 else "processes"
    shown = f"{graph.processes} {word}" + (f" in {rows} rows" if rows < graph.processes else "")
    left = _LEFT + _TREE
    parts = [
        f'<text class="title" x="{_LEFT}" y="22">{_text(title)}</text>',
        f'<text class="dim" x="{_LEFT}" y="44">{shown}, {span:.3f} s of virtual time</text>',
        f'<text class="dim" x="{left + _BARS + 10}" y="44">duration</text>',
    ]
    if flows:
        kinds = '<tspan class="file">files</tspan>, <tspan class="pipe">pipes</tspan>'
        parts.append(f'<text class="dim" x="{_FILES}" y="44">from other processes: {kinds}</text>')
    for quarter in range(5):
        x = left + _BARS * quarter / 4
        parts.append(f'<line class="grid" x1="{x}" y1="{_TOP - 12}" x2="{x}" y2="{height - _BOTTOM}"/>')
    for half, anchor in enumerate(("start", "middle", "end")):
        x, text = left + _BARS * half / 2, seconds(span * half / 2) if half else "0"
        parts.append(f'<text class="dim" x="{x}" y="44" text-anchor="{anchor}">{text}</text>')
    return parts


def _row(node: Node, depth: int, number: int, first: float, span: float, width: int) -> list[str]:
    from detbox.report.graph import duration_of, label_of

    y = _y(number)
    x = _LEFT + min(depth, _DEEPEST) * _INDENT
    room = int((_LEFT + _TREE - x - 8) / _CHARS)
    failed = " bad" if node.failure else ""
    about = f"{', '.join(node.lineages[:5])}{' …' if node.count > 5 else ''}: {node.command} {node.failure}"
    start = _LEFT + _TREE + (node.start - first) / span * _BARS
    length = max(2.0, (node.end - node.start) / span * _BARS)
    kind = " failed" if node.failure else " many" if node.count > 1 else ""
    parts = []
    if number % 2:
        parts.append(f'<rect class="stripe" x="0" y="{y - _ROW / 2}" width="{width}" height="{_ROW}"/>')
    parts += [
        f"<g><title>{_text(about)}</title>",
        f'<text class="name{failed}" x="{x}" y="{y + 4}">{_text(label_of(node, room))}</text>',
        f'<rect class="bar{kind}" x="{min(start, _LEFT + _TREE + _BARS - 2):.1f}" y="{y - 5}" '
        f'width="{length:.1f}" height="10" rx="2"/>',
        f'<text class="dim" x="{_LEFT + _TREE + _BARS + 10}" y="{y + 4}">{_text(duration_of(node))}</text></g>',
    ]
    return parts


def _branches(rows: list[tuple[Node, int]], place: dict[int, int]) -> list[str]:
    """The lines from parents to children."""
    parts = []
    for node, depth in rows:
        if not node.children or depth >= _DEEPEST:
            continue
        x = _LEFT + depth * _INDENT + 4
        for child in node.children:
            y = _y(place[id(child)])
            parts.append(f'<path class="branch" d="M{x} {_y(place[id(node)]) + 8} V{y} h8"/>')
    return parts


def _arcs(flows: list[Flow], place: dict[int, int], total: int) -> list[str]:
    lanes: list[list[tuple[int, int]]] = [[] for _ in range(_LANES)]
    parts: list[str] = []
    named: dict[int, tuple[list[str], list[str]]] = {}
    for flow in flows:
        source, target = place[id(flow.source)], place[id(flow.target)]
        low, high = sorted((source, target))
        lane = next(
            (number for number, taken in enumerate(lanes) if all(high < a or low > b for a, b in taken)), _LANES - 1
        )
        lanes[lane].append((low, high))
        x = _ARCS + (lane + 1) * _LANE
        about = f"{flow.source.command} → {flow.target.command}: {', '.join((*flow.paths, *flow.pipes))}"
        kind, tip = ("flow", "tip") if flow.paths else ("flow piped", "piped")
        y, to = _y(source) + 3, _y(target) - 3
        turn = 5 if to > y else -5
        parts.append(
            f'<path class="{kind}" marker-end="url(#{tip})" d="M{_ARCS} {y} H{x - 5} Q{x} {y} {x} {y + turn} '
            f'V{to - turn} Q{x} {to} {x - 5} {to} H{_ARCS + 1}"><title>{_text(about[:2000])}</title></path>'
        )
        names = named.setdefault(target, ([], []))
        names[0].extend(flow.paths)
        names[1].extend(flow.pipes)
    parts += [_names(target, *names) for target, names in named.items()]
    if total > len(flows):
        y = _y(max(place.values()) + 1) + 8
        text = f"{total - len(flows)} more connections are not drawn"
        parts.append(f'<text class="dim" x="{_ARCS}" y="{y}">{text}</text>')
    return parts


def _names(target: int, files: list[str], pipes: list[str]) -> str:
    """What comes into a row from others, beside it."""
    from detbox.report.graph import short

    room, parts = int(_NAMES / _CHARS), []
    for kind, paths in (("file", files), ("pipe", pipes)):
        text = ", ".join(short(tuple(dict.fromkeys(paths)), 3))
        text = text if len(text) <= room else text[: max(room - 1, 0)] + "…"
        room -= len(text) + 1
        if text and room > -2:
            parts.append(f'<tspan class="{kind}">{_text(text)}</tspan>')
    return f'<text x="{_FILES}" y="{_y(target) + 4}">{" ".join(parts)}</text>'
