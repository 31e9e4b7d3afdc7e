"""The page: complete, self-contained, and safe whatever the guest has made."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from detbox.recorder.compare import Divergence
from detbox.recorder.format import Event, Kind
from detbox.report.page import page
from detbox.report.perturb import Observed, compare, variants
from detbox.report.sides import sides
from detbox.report.text import Paint, lines
from detbox.report.tree import snapshot
from detbox.report.verdict import Verdict
from detbox.report.verify import Comparison, Row, Run
from detbox.spec import make_spec

EVIL = "<script>alert(1)</script>\"'&\033[31m\u202e"
_VOID = {"meta", "br", "img", "link"}


class Outline(HTMLParser):
    """Collects tags and attributes, and checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def outline(text: str) -> Outline:
    found = Outline()
    found.feed(text)
    found.close()
    assert not found.open
    return found


def observed(place: Path, text: str, name: bytes) -> Observed:
    place.mkdir()
    (place / "text").write_text(f"same\n{text}\nsame\n")
    (place / "data").write_bytes(bytes(range(200)) + text.encode("utf-8", "surrogatepass"))
    with open(bytes(place) + b"/" + name, "wb"):
        pass
    return Observed(0, f"{EVIL} {text}\n".encode(), b"", snapshot(place, (0, 0)), 0.5, place)


@pytest.fixture
def verdict(tmp_path: Path) -> Verdict:
    runs = [
        Run(host, observed(tmp_path / str(number), f"{EVIL}{number}", b"\xff<b>" + b"x" * number))
        for number, host in enumerate(variants(2, without=["user"]))
    ]
    spec = make_spec(["sh", "-c", EVIL], {"workdir": str(tmp_path)}, {}, "/")
    event = Event(Kind.EXEC, 1)
    parting = Divergence(7, event, event, (EVIL, "b"), "1.2", [("1", f"sh -c {EVIL}")], [EVIL])
    rows = [Row("umask", "the mask", True), Row("user", "who", False, EVIL)]
    comparison = Comparison(runs, 1, compare(runs[0].observed, runs[1].observed))
    return Verdict(spec, rows, comparison, comparison, (), parting, [EVIL])


def test_nothing_of_the_guest_is_markup(verdict: Verdict) -> None:
    text = page(verdict)
    found = outline(text)
    assert not found.tags & {"script", "b<", "img", "link", "iframe", "object"}
    assert not {name for name in found.attributes if name.startswith("on") or name in ("src", "href")}
    assert "\033" not in text and "\u202e" not in text and "<script" not in text
    assert not re.search(r"https?://|url\(", text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_all_sections_are_there(verdict: Verdict) -> None:
    text = page(verdict)
    for name in ("event", "detbox", "natively", "ran", "hosts"):
        assert f'<section id="{name}">' in text
    for word in ("not applied", "data", "text", ": time", "000000d0"):
        assert word in text


def test_text_for_a_terminal_cannot_steer_it(verdict: Verdict) -> None:
    plain = "\n".join(lines(verdict, Paint()))
    assert "\033" not in plain and "\u202e" not in plain
    coloured = "\n".join(lines(verdict, Paint(True)))
    assert set(re.findall(r"\033\[[\d;]*(.)", coloured)) == {"m"}
    assert re.sub(r"\033\[[\d;]*m", "", coloured) == plain


def test_words_that_differ_are_marked() -> None:
    text = sides(b"one two three\n", b"one 2 three\n", ("a", "b"))
    assert "one <mark>two</mark> three" in text and "one <mark>2</mark> three" in text


def test_large_contents_are_cut_and_say_so() -> None:
    many = [b"".join(b"%d %d\n" % (number, kind) for number in range(9000)) for kind in (1, 2)]
    text = sides(many[0], many[1], ("a", "b"))
    assert len(text) < 200_000
    assert "more rows are not shown" in text and "of 9000 lines were compared" in text
    outline(text)
    wide = sides(b"x" * 100_000 + b"a", b"x" * 100_000 + b"b", ("a", "b"))
    assert len(wide) < 5_000 and "<mark>" in wide


@pytest.mark.parametrize("at", [0, 1, 15, 16, 5000, 99_999])
def test_bytes_begin_near_the_first_difference(at: int) -> None:
    left = bytearray(100_000)
    right = bytearray(left)
    right[at] = 1
    text = sides(bytes(left), bytes(right), ("a", "b"))
    assert f"is byte {at} (" in text and "<mark>01</mark>" in text
    outline(text)


def test_one_is_the_beginning_of_the_other() -> None:
    text = sides(b"\0" * 40, b"\0" * 50, ("a", "b"))
    assert "40 and 50 bytes; the first that differs is byte 40" in text
