"""The picture of a run: its tree of processes, how long each took, and the files that went from one to another."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from detbox.errors import UserError
from detbox.recorder.files import Files
from detbox.recorder.format import Kind
from detbox.recorder.read import Trace, joined
from detbox.report import graph_flows, graph_svg
from detbox.report.graph_flows import Flow

#: A picture with more rows than this is folded until it has no more.
MAX_ROWS = 150
_NS = 1e9


@dataclass
class Node:
    """One row: a process, or ``count`` alike ones (or a folded tree of ``count`` processes).

    ``start`` and ``end``: virtual seconds, from the first process's start to the last one's end.  ``took``: how long
    each took, added up.  ``real``: the same in real seconds, if they are known.
    """

    lineages: list[str]
    command: str
    start: float
    end: float
    failure: str = ""
    real: float | None = None
    took: float = 0.0
    folded: int = 0  # processes below that are not shown
    children: list[Node] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Processes that the row stands for, without the folded ones."""
        return len(self.lineages)

    @property
    def name(self) -> str:
        """The program's name."""
        return os.path.basename(self.command.split(" ", 1)[0])

    def rows(self) -> int:
        """Rows of the node and of everything below it."""
        return 1 + sum(child.rows() for child in self.children)

    def walk(self, depth: int = 0) -> Iterator[tuple[Node, int]]:
        """The node and everything below it, each with its depth."""
        yield self, depth
        for child in self.children:
            yield from child.walk(depth + 1)


@dataclass
class Graph:
    """What the pictures are drawn from."""

    title: str
    roots: list[Node]
    flows: list[Flow]
    processes: int
    trace: Trace


def read(path: Path | str, real_times: Path | str | None = None, most: int = MAX_ROWS) -> Graph:
    """The graph of a trace, folded to ``most`` rows.  Raises UserError for what is no trace."""
    trace, files = Trace(Path(path)), Files()
    nodes: dict[str, Node] = {}
    for event, threads in joined(trace):
        files.learn(event, threads)
        if event.kind is Kind.FORK:
            child = threads.by_number[event.other]
            if not child.is_first:
                continue
            parent = nodes.get(threads.of(event).process)
            now = parent.end if parent is not None else 0.0
            _enter(nodes, child.process, child.command, now)
            continue
        thread = threads.of(event)
        if event.kind not in (Kind.CALL, Kind.EXEC, Kind.EXIT) or thread.process == "?":
            continue
        now = event.time_ns / _NS
        node = nodes.get(thread.process) or _enter(nodes, thread.process, thread.command, now)
        node.end = max(node.end, now)
        if event.kind is Kind.EXEC:
            node.command = thread.command
        elif event.kind is Kind.EXIT:
            node.failure = _failure(event.status)
    _add_real_times(nodes, real_times)
    for node in nodes.values():
        node.took = node.end - node.start
        node.children.sort(key=lambda child: child.start)
    roots = [node for name, node in nodes.items() if name.rpartition(".")[0] not in nodes]
    for root in roots:
        _fold_like(root)
    _fold_deep(roots, most)
    title = " ".join(trace.description.get("command", []))
    return Graph(title, roots, graph_flows.flows(files, roots), len(nodes), trace)


def dot(graph: Graph) -> str:
    """The graph in Graphviz's language."""
    rows = [node for root in graph.roots for node, _ in root.walk()]
    number = {id(node): place for place, node in enumerate(rows)}
    lines = ["digraph run {", "  rankdir=LR;", '  node [shape=box, fontname="monospace", fontsize=10];']
    for node in rows:
        colour = ', color="#b3261e"' if node.failure else ""
        label = f"{label_of(node)}\n{duration_of(node)}"
        lines.append(f"  p{number[id(node)]} [label={_quote(label)}{colour}];")
    for node in rows:
        lines += [f"  p{number[id(node)]} -> p{number[id(child)]};" for child in node.children]
    for flow in graph.flows:
        text = _quote("\n".join(short((*flow.paths, *flow.pipes), 4)))
        ends = f"p{number[id(flow.source)]} -> p{number[id(flow.target)]}"
        colour = graph_svg.GREEN if flow.paths else graph_svg.PURPLE
        lines.append(f'  {ends} [label={text}, style=dashed, color="{colour}", constraint=false, fontsize=8];')
    return "\n".join([*lines, "}", ""])


def label_of(node: Node, width: int = 60) -> str:
    """What a row is called."""
    text = node.command.replace("\n", " ")
    text = text if len(text) <= width else text[: width - 1] + "…"
    if node.count > 1:
        text = f"{node.name} × {node.count}"
    return text + (f" (+ {node.folded} below)" if node.folded else "")


def duration_of(node: Node) -> str:
    """How long a row's processes took."""
    real = f", {seconds(node.real)} real" if node.real is not None else ""
    return seconds(node.took) + real


def short(paths: tuple[str, ...], most: int) -> list[str]:
    """The first file names, and how many more there are."""
    names = [os.path.basename(path) for path in paths[:most]]
    return names + ([f"and {len(paths) - most} more"] if len(paths) > most else [])


def seconds(value: float) -> str:
    """A duration in seconds, with a unit that suits it."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"


def _quote(text: str) -> str:
    clean = text.encode("utf-8", "backslashreplace").decode()
    return '"' + clean.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _failure(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    return f"status {os.WEXITSTATUS(status)}" if os.WEXITSTATUS(status) else ""


def _enter(nodes: dict[str, Node], lineage: str, command: str, now: float) -> Node:
    node = nodes[lineage] = Node([lineage], command, now, now)
    parent = nodes.get(lineage.rpartition(".")[0])
    if parent is not None:
        parent.children.append(node)
    return node


def _add_real_times(nodes: dict[str, Node], path: Path | str | None) -> None:
    if path is None:
        return
    try:
        seconds_of = json.loads(Path(path).read_bytes())["seconds"]
        for lineage in seconds_of.keys() & nodes.keys():
            nodes[lineage].real = float(seconds_of[lineage])
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} has no real times", "detbox trace --real-times FILE writes them") from None


# -- folding ---------------------------------------------------------------------------


def _shape(node: Node) -> tuple[object, ...]:
    """Equal for trees that look alike."""
    below = Counter(_shape(child) for child in node.children)
    return node.name, bool(node.failure), tuple(sorted(((str(s), n) for s, n in below.items())))


def _fold_like(node: Node) -> None:
    """Siblings that look alike become one row, from three on."""
    groups: dict[tuple[object, ...], list[Node]] = {}
    for child in node.children:
        _fold_like(child)
        groups.setdefault(_shape(child), []).append(child)
    kept = []
    for group in groups.values():
        kept += [_merge(group)] if len(group) > 2 else group
    node.children = sorted(kept, key=lambda child: child.start)


def _merge(group: list[Node]) -> Node:
    first = group[0]
    children = [_merge(list(column)) for column in zip(*(_ordered(node) for node in group), strict=True)]
    real = [node.real for node in group if node.real is not None]
    return Node(
        [lineage for node in group for lineage in node.lineages], first.command,
        min(node.start for node in group), max(node.end for node in group), first.failure,
        sum(real) if real else None, sum(node.took for node in group), sum(node.folded for node in group), children,
    )  # fmt: skip


def _ordered(node: Node) -> list[Node]:
    return sorted(node.children, key=lambda child: str(_shape(child)))


def _fold_deep(roots: list[Node], most: int) -> None:
    """Fold the deepest processes away, then the later children of a parent, until the rows fit."""
    depth = max((depth for root in roots for _, depth in root.walk()), default=0)
    while sum(root.rows() for root in roots) > most and depth > 1:
        depth -= 1
        for root in roots:
            for node, at in root.walk():
                if at == depth and node.children:
                    _absorb(node, node.children)
                    node.children = []
        for root in roots:
            _fold_like(root)
    left = most // max(1, len(roots))
    for root in roots:
        if len(root.children) > left:
            kept = sorted(root.children, key=lambda node: node.start - node.end)[: left - 1]
            chosen = {id(node) for node in kept}
            _absorb(root, [node for node in root.children if id(node) not in chosen])
            root.children = [node for node in root.children if id(node) in chosen]


def _absorb(node: Node, gone: list[Node]) -> None:
    node.folded += sum(below.count + below.folded for child in gone for below, _ in child.walk())
