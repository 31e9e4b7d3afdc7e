"""The reports of a survey: JSON, Markdown and one page of HTML that needs nothing else."""

from __future__ import annotations

import html
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detbox.deb import whole
from detbox.deb.source import UPSTREAM

if TYPE_CHECKING:
    from detbox.deb.survey import Wanted

_COLOURS = {
    "identical": "#2a7f3f", "different": "#b3261e", "failed": "#d77a00", "timeout": "#8a6d00",
    "fails natively": "#6b5b95", "not served": "#8a8a8a", "not reached": "#c4c4c4",
}  # fmt: skip
_STYLE = (
    "body{font:15px/1.45 sans-serif;margin:2em auto;max-width:72em;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;font-size:13px}td,th{padding:2px 8px;border-bottom:1px solid #ddd;text-align:left}"
    "td.n{text-align:right}svg{max-width:100%}"
)


def write(output: Path, chosen: Sequence[Wanted], rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Write ``survey.json``, ``survey.md`` and ``survey.html``, each as a whole."""
    records = [_record(row) for row in rows.values()]
    records += [
        {"package": item.name, "kind": item.kind, "status": "not reached", "reason": ""}
        for item in chosen if item.name not in rows
    ]  # fmt: skip
    facts = summary(records)
    whole.write(
        output / "survey.json", json.dumps({"version": 1, "summary": facts, "packages": records}, indent=1) + "\n"
    )
    whole.write(output / "survey.md", markdown(facts, records))
    whole.write(output / "survey.html", page(facts, records))


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    """One package, as the reports show it."""
    result = row["result"]
    native = result.get("native") or {}
    times, plain = result.get("times", {}), native.get("times", {})
    built = bool(native.get("built"))
    reason = row["reason"]
    return {
        "package": row["name"], "version": result.get("source_version", ""), "kind": row["kind"],
        "replaces": row["replaces"], "status": row["status"],
        "reason": " ".join(reason.split())[:400],
        "native": "" if not native else "not built" if not built else "differs" if native["differing"] else "same",
        "native_differing": native.get("differing", []), "native_files": native.get("files", [])[:20],
        "as_natively": _as_natively(native.get("packages", {}), result.get("artefacts", {})) if built else None,
        "causes": native.get("causes", []), "native_clock_varied": native.get("clock", False),
        "artefacts": result.get("artefacts", {}), "calls": result.get("calls", 0),
        "wall_s": times.get("wall_s"), "cpu_s": times.get("cpu_s"),
        "native_wall_s": plain.get("wall_s"), "native_cpu_s": plain.get("cpu_s"),
        "wall_ratio": _ratio(times.get("wall_s"), plain.get("wall_s")),
        "cpu_ratio": _ratio(times.get("cpu_s"), plain.get("cpu_s")),
        "side_by_side": native.get("side_by_side", False),
    }  # fmt: skip


def _as_natively(plain: Mapping[str, str], boxed: Mapping[str, str]) -> bool | None:
    """Whether the first native build made the same packages as detbox; None if that was not noted."""
    return all(boxed.get(name) == digest for name, digest in plain.items()) if plain else None


def _ratio(one: float | None, other: float | None) -> float | None:
    return round(one / other, 3) if one and other else None


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of a survey."""
    statuses = Counter(record["status"] for record in records)
    built = [r for r in records if r.get("native") in ("same", "differs")]
    timed = [r for r in records if r.get("wall_ratio") and r["side_by_side"]]
    wall, cpu = [r["wall_ratio"] for r in timed], [r["cpu_ratio"] for r in timed if r["cpu_ratio"]]
    return {
        "packages": len(records), "status": dict(sorted(statuses.items())),
        "built_natively": len(built),
        "native_differs": sum(r["native"] == "differs" for r in built),
        "native_differs_upstream": sum(
            r["native"] == "differs" and r["package"].startswith(UPSTREAM) for r in built
        ),
        "native_differs_identical_under_detbox": sum(
            r["native"] == "differs" and r["status"] == "identical" for r in built
        ),
        "native_same_and_as_under_detbox": sum(bool(r.get("as_natively")) for r in built if r["native"] == "same"),
        "native_same_and_noted": sum(r.get("as_natively") is not None for r in built if r["native"] == "same"),
        "causes": dict(Counter(cause for r in records for cause in r.get("causes", ())).most_common()),
        "timed": len(timed),
        "wall_ratio_median": round(statistics.median(wall), 2) if wall else None,
        "cpu_ratio_median": round(statistics.median(cpu), 2) if cpu else None,
        "cpu_ratio_worst": max(cpu) if cpu else None,
    }  # fmt: skip


def _facts(facts: Mapping[str, Any]) -> list[str]:
    statuses = ", ".join(f"{count} {status}" for status, count in facts["status"].items())
    causes = ", ".join(f"{cause} ({count})" for cause, count in facts["causes"].items()) or "none"
    return [
        f"{facts['packages']} source packages: {statuses}.",
        f"{facts['built_natively']} of them were also built natively on two hosts: {facts['native_differs']} "
        f"differ ({facts['native_differs_upstream']} unpatched upstream releases), "
        f"of which {facts['native_differs_identical_under_detbox']} are identical under detbox.",
        f"Of {facts['native_same_and_noted']} that do not differ natively, {facts['native_same_and_as_under_detbox']} "
        "are under detbox what they are natively.",
        f"What the native differences look like: {causes}.",
        f"Time compared with the native build, median of {facts['timed']}: {facts['wall_ratio_median']} (wall), "
        f"{facts['cpu_ratio_median']} (CPU); most CPU: {facts['cpu_ratio_worst']}.",
    ]


def _cells(record: Mapping[str, Any]) -> list[str]:
    ratios = [record.get("cpu_ratio"), record.get("wall_ratio")]
    form = "{:.2f}" if record.get("side_by_side") else "({:.2f})"
    return [
        record["package"], record.get("version", ""), record["kind"], record["status"], record.get("native", ""),
        ", ".join(record.get("causes", ())), *("" if value is None else form.format(value) for value in ratios),
        record["reason"][:160] or (f"instead of {record['replaces']}" if record.get("replaces") else ""),
    ]  # fmt: skip


_HEADS = ("package", "version", "kind", "under detbox", "natively", "looks like", "CPU ratio", "wall ratio", "note")


def markdown(facts: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """The report for people who read text."""
    lines = ["# Survey of Debian packages", "", *(f"- {line}" for line in _facts(facts)), ""]
    lines += ["| " + " | ".join(_HEADS) + " |", "|" + " --- |" * len(_HEADS)]
    for record in records:
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(record)) + " |")
    return "\n".join(lines) + "\n"


def page(facts: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """The report as one page of HTML."""
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(record)) + "</tr>\n" for record in records
    )
    heads = "".join(f"<th>{head}</th>" for head in _HEADS)
    facts_html = "".join(f"<li>{html.escape(line)}</li>" for line in _facts(facts))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Survey of Debian packages</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>Survey of Debian packages</h1>\n<ul>{facts_html}</ul>\n"
        f"<h2>Status</h2>\n{status_plot(facts['status'])}\n<h2>CPU time compared with the native build</h2>\n"
        f"{ratio_plot(records)}\n<h2>Packages</h2>\n<table><tr>{heads}</tr>\n{rows}</table></body></html>\n"
    )


def status_plot(statuses: Mapping[str, int]) -> str:
    """A bar of the statuses, as SVG."""
    total, x, parts = max(1, sum(statuses.values())), 0.0, []
    for status, count in statuses.items():
        width = 900 * count / total
        colour = _COLOURS.get(status, "#555")
        parts.append(
            f'<rect x="{x:.1f}" y="0" width="{width:.1f}" height="28" fill="{colour}"><title>{status}: {count}</title>'
            f'</rect><text x="{x + 4:.1f}" y="46" font-size="12" fill="{colour}">{status} {count}</text>'
        )
        x += width
    return f'<svg viewBox="0 0 900 56" role="img" aria-label="status">{"".join(parts)}</svg>'


def ratio_plot(records: Sequence[Mapping[str, Any]]) -> str:
    """One bar for each package, sorted by ratio, as SVG; the line is the native time."""
    known = sorted((r["cpu_ratio"], r["package"]) for r in records if r.get("cpu_ratio"))
    if not known:
        return "<p>nothing measured</p>"
    top, parts = max(known[-1][0], 2.0), []
    step = 900 / len(known)
    for place, (ratio, name) in enumerate(known):
        height = 180 * ratio / top
        parts.append(
            f'<rect x="{place * step:.1f}" y="{190 - height:.1f}" width="{max(1.0, step - 2):.1f}" '
            f'height="{height:.1f}" '
            f'fill="#3b6ea5"><title>{html.escape(name)}: {ratio:.2f}</title></rect>'
        )
    for mark in range(1, int(top) + 1):
        y = 190 - 180 * mark / top
        parts.append(f'<line x1="0" x2="900" y1="{y:.1f}" y2="{y:.1f}" stroke="#999" stroke-dasharray="3 3"/>'
                     f'<text x="2" y="{y - 2:.1f}" font-size="11">{mark}</text>')  # fmt: skip
    return f'<svg viewBox="0 0 900 200" role="img" aria-label="CPU ratios">{"".join(parts)}</svg>'
