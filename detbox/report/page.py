"""The report of a verification as one self-contained page: no script, and nothing that is fetched from elsewhere."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Sequence

import detbox
from detbox.errors import DetboxError
from detbox.report import graph, graph_svg
from detbox.report.differ import file_content, text_first
from detbox.report.page_style import STYLE
from detbox.report.perturb import Difference
from detbox.report.shown import command_line, markup, shortened
from detbox.report.sides import sides
from detbox.report.verdict import Verdict, count, failures, label, ranked
from detbox.report.verify import Comparison, Run

#: Contents that are shown side by side, and rows of the table of other differences.
_CONTENTS, _FIELDS, _VALUE = 25, 300, 200
_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
"""


def page(verdict: Verdict) -> str:
    """The whole page."""
    title = f"detbox verify: {shortened(command_line(verdict.spec.command), 80)}"
    body = "".join(_body(verdict))
    head = f"{_HEAD}<title>{markup(title)}</title><style>{STYLE}</style></head>"
    return f"{head}<body><main>{body}</main></body></html>\n"


def _body(verdict: Verdict) -> Iterator[str]:
    good = verdict.identical
    word = "identical" if good else "different"
    yield f'<header><p class="tool">detbox verify</p><h1><code>{markup(command_line(verdict.spec.command))}</code></h1>'
    yield f'<p class="verdict {"good" if good else "bad"}">{word}</p>'
    yield f"<p>{len(verdict.boxed.runs)} runs on hosts that differ: {markup(verdict.summary())}.</p>"
    yield "".join(f'<p class="note">{markup(note)}</p>' for note in (*_everywhere(verdict), *verdict.notes))
    yield "</header>"
    if verdict.native is not None:
        yield _cards(verdict)
    if verdict.divergence is not None:
        yield _section("event", "The first divergent event", "".join(_event(verdict)))
    if verdict.boxed.differences:
        yield _section("detbox", f"Under detbox: {count(verdict.boxed)}", "".join(_differences(verdict.boxed)))
    if verdict.causes:
        rows = [(f"<b>{markup(c.name)}</b>", markup(c.evidence), str(c.count)) for c in verdict.causes]
        text = _grid(("class of cause", "evidence, for the first difference", "differences"), rows)
        yield _section("causes", "Why the native runs differ", text)
    if verdict.native is not None and verdict.native.differences:
        yield _section("natively", f"Natively: {count(verdict.native)}", "".join(_differences(verdict.native)))
    yield _section("ran", "What ran", _what_ran(verdict))
    yield _section("hosts", "Perturbations", _perturbations(verdict))
    if verdict.doubts:
        text = "".join(f"<li>{markup(doubt)}</li>" for doubt in verdict.doubts)
        yield _section("doubts", "Not promised to be deterministic", f"<ul>{text}</ul>")
    graph = _graph(verdict)
    if graph:
        yield _section("processes", "Processes of the first run", f'<div class="scroll graph">{graph}</div>')
    yield f"<footer>made by detbox {markup(detbox.__version__)}; nothing was normalised before comparing</footer>"


def _everywhere(verdict: Verdict) -> list[str]:
    """What is to be said of runs that do not differ."""
    return failures(verdict.boxed) if verdict.identical else []


def _section(name: str, title: str, text: str) -> str:
    return f'<section id="{name}"><h2>{markup(title)}</h2>{text}</section>'


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]], style: str = "") -> str:
    """A table; the cells are HTML already."""
    top = "".join(f"<th>{markup(word)}</th>" for word in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="grid {style}">{table}</table></div>'


def _cards(verdict: Verdict) -> str:
    assert verdict.native is not None
    found = []
    for title, comparison in (("natively", verdict.native), ("under detbox", verdict.boxed)):
        style = "bad" if comparison.differences else "good"
        listed = "".join(f"<li>{_code(label(d))}</li>" for d in ranked(comparison.differences)[:6])
        more = len(comparison.differences) - 6
        listed += f"<li>and {more} more</li>" if more > 0 else ""
        found.append(
            f'<div class="card {style}"><h3>{title}</h3><p class="count">{markup(count(comparison))}</p>'
            f"<ul>{listed}</ul></div>"
        )
    return f'<div class="cards">{"".join(found)}</div>'


def _differences(comparison: Comparison) -> Iterator[str]:
    """Contents side by side, then everything else as a table."""
    left, right = comparison.runs[0], comparison.runs[comparison.other]
    for sentence in failures(comparison):
        yield f'<p class="warn">{markup(sentence)}</p>'
    contents = list(_contents(comparison.differences, left, right))
    for name, one, other in contents[:_CONTENTS]:
        opened = " open" if name == contents[0][0] or len(contents) < 6 else ""
        shown = sides(one, other, ("run 1", f"run {comparison.other + 1}"))
        yield f"<details{opened}><summary>{markup(name)}</summary>{shown}</details>"
    if len(contents) > _CONTENTS:
        yield f'<p class="note">{len(contents) - _CONTENTS} more contents differ; --json lists them all</p>'
    named = {name for name, _, _ in contents}
    rest = [d for d in comparison.differences if (d.path or d.what) not in named or not d.where.endswith(" sha256")]
    rest = [d for d in rest if d.what not in ("stdout", "stderr")]
    if rest:
        rows = [(markup(label(d)), _value(d.left), _value(d.right)) for d in rest[:_FIELDS]]
        yield _grid(("where", "run 1", f"run {comparison.other + 1}"), rows, "fields")
    if len(rest) > _FIELDS:
        yield f'<p class="note">{len(rest) - _FIELDS} more rows; --json lists them all</p>'


def _value(text: str) -> str:
    return _code(shortened(text, _VALUE))


def _contents(differences: Sequence[Difference], left: Run, right: Run) -> Iterator[tuple[str, bytes, bytes]]:
    """Name and both values of every content that differs."""
    one, other = left.observed, right.observed
    for what in ("stdout", "stderr"):
        if getattr(one, what) != getattr(other, what):
            yield what, getattr(one, what), getattr(other, what)
    changed = [d for d in differences if d.path and d.where.endswith(" sha256")]
    for path in dict.fromkeys(d.path for d in text_first(changed, one, other)):
        if one.work is not None and other.work is not None:
            values = [file_content(work / path) for work in (one.work, other.work)]
            if values[0] is not None and values[1] is not None:
                yield path, values[0], values[1]


def _event(verdict: Verdict) -> Iterator[str]:
    event = verdict.divergence
    assert event is not None
    facts = [("event", f"number {event.index}"), ("thread", event.thread), ("call", event.call)]
    facts += [("class of cause", verdict.cause)] if verdict.cause else []
    yield _facts([(name, _code(value)) for name, value in facts if value])
    yield _grid(("", "what happened"), [
        ("run 1", f'<code class="left">{markup(event.texts[0])}</code>'),
        (f"run {verdict.boxed.other + 1}", f'<code class="right">{markup(event.texts[1])}</code>'),
    ])  # fmt: skip
    yield "<h3>Processes above it, outermost first</h3><ol class=stack>"
    yield "".join(f"<li><b>{markup(name)}</b> <code>{markup(what)}</code></li>" for name, what in event.stack)
    yield "</ol><h3>Events before it</h3><pre>"
    yield "\n".join(markup(text) for text in event.before)
    yield "</pre>"


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    """A list of names and values; the values are HTML already."""
    return "<dl>" + "".join(f"<dt>{markup(name)}</dt><dd>{value}</dd>" for name, value in facts) + "</dl>"


def _what_ran(verdict: Verdict) -> str:
    spec = verdict.spec
    env = [f"{os.fsdecode(name)}={os.fsdecode(value)}" for name, value in spec.env.items()]
    mounts = [f"{m.src} at {m.dst} ({'writable copy' if m.rw else 'read-only'})" for m in spec.mounts]
    facts = [
        ("command", command_line(spec.command)), ("work directory", spec.workdir), ("image", spec.image or "the host"),
        ("mounts", "\n".join(mounts)), ("epoch", _moment(spec.epoch_ns)), ("seed", str(spec.seed)),
        ("processors", f"{spec.cpus}, {spec.cpu_model}"), ("user", spec.user), ("environment", "\n".join(env)),
        ("host", f"{platform.system()} {platform.release()}, {os.cpu_count()} processors"),
    ]  # fmt: skip
    rows = []
    for title, comparison in (("natively", verdict.native), ("under detbox", verdict.boxed)):
        for number, run in enumerate(comparison.runs if comparison else (), 1):
            status = markup(run.error or str(run.observed.status))
            sizes = f"{len(run.observed.stdout)} / {len(run.observed.stderr)}"
            files = str(len(run.observed.tree))
            rows.append((title, str(number), status, f"{run.observed.seconds:.2f}", sizes, files))
    head = ("", "run", "status", "real seconds", "bytes to stdout / stderr", "files")
    values = [(name, "<br>".join(_code(line) for line in text.split("\n"))) for name, text in facts if text]
    return _facts(values) + _grid(head, rows)


def _moment(ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(ns // 10**9))


def _code(text: str) -> str:
    return f"<code>{markup(text)}</code>"


def _perturbations(verdict: Verdict) -> str:
    hosts = [run.host for run in verdict.boxed.runs[:3]]
    rows = []
    for row in verdict.rows:
        values = [_value(_setting(row.name, host.settings[row.name])) if row.applied else "" for host in hosts]
        state = "<b class=good>applied</b>" if row.applied else f"not applied: {markup(row.why)}"
        rows.append((f"<b>{markup(row.name)}</b>", markup(row.changes), state, *values))
    head = ("name", "what it changes", "", *(f"run {number}" for number in range(1, len(hosts) + 1)))
    return _grid(head, rows, "hosts")


def _setting(row: str, value: object) -> str:
    """A host's value of a row."""
    if row == "umask":
        return f"{value:03o}"
    if isinstance(value, dict):
        words = [f"{shortened(name, 24)}={shortened(str(text), 24)}" for name, text in value.items()]
        return ", ".join(words) or "none"
    if value is None:
        return "as it is"
    return str(value) if not isinstance(value, bool) else ("yes" if value else "no")


def _graph(verdict: Verdict) -> str:
    """The picture of the first run's processes; "" if there is none."""
    if verdict.trace is None:
        return ""
    try:
        times = verdict.trace.with_name(verdict.trace.name + "-times")
        picture = graph_svg.draw(graph.read(verdict.trace, times))
    except (DetboxError, OSError):
        return ""
    return picture[picture.find("<svg") :]
