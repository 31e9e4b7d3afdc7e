"""Lists, the data base, the verdict on a package, and the reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detbox.deb import pages, survey, table
from detbox.deb.verify import ANYWHERE
from detbox.errors import UserError

_NATIVE = {
    "built": True, "note": "", "differing": ["a.deb"], "causes": ["date"], "files": [], "clock": True,
    "side_by_side": True, "times": {"wall_s": 2.0, "cpu_s": 1.0},
}  # fmt: skip
_RESULT = {
    "identical": True, "source_version": "1-1", "differences": [], "artefacts": {"a.deb": "00"}, "calls": 5,
    "times": {"wall_s": 3.0, "cpu_s": 2.0}, "attestation": {},
    "native": _NATIVE,
}  # fmt: skip


def test_a_list_and_its_reserve(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("# head\nhello autotools\nupstream:hello\n[reserve]\nbc autotools\n")
    chosen, reserve = survey.read_list(path)
    assert [(item.name, item.kind) for item in chosen] == [("hello", "autotools"), ("upstream:hello", "other")]
    assert [item.name for item in reserve] == ["bc"]


@pytest.mark.parametrize("text", ["", "hello a b\n", "-x\n", "hello\nhello\n"])
def test_lists_that_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list"
    path.write_text(text)
    with pytest.raises(UserError):
        survey.read_list(path)


def test_verdicts() -> None:
    assert survey.judge(0, json.dumps(_RESULT), "")[0] == "identical"
    differing = json.dumps({**_RESULT, "identical": False, "differences": ["x"]})
    assert survey.judge(1, differing, "")[:2] == ("different", "x")
    assert survey.judge(125, "", "detbox: the archive lists x and does not serve it")[0] == "not served"
    assert survey.judge(1, "", "detbox: the build failed") == ("failed", "the build failed", {})
    assert survey.judge(1, "", f"detbox: the build failed; {ANYWHERE}")[0] == "fails natively"


def test_what_is_known_is_not_done_again(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("hello autotools\nsl make\n")
    output = tmp_path / "out"
    base = survey.Survey(output / survey.DATABASE)
    for item in survey.read_list(path)[0]:
        base.add(item, *survey.judge(0, json.dumps(_RESULT), ""), 1.0)
    base.close()
    status = survey.main(path, output, ["--no-such-option"], jobs=1, limit_s=5, build=True, environment={})
    assert status == 0
    written = json.loads((output / "survey.json").read_text())
    assert written["summary"]["native_differs_identical_under_detbox"] == 2
    assert written["summary"]["cpu_ratio_median"] == 2.0
    assert "| hello | 1-1 |" in (output / "survey.md").read_text()
    assert "http" not in (output / "survey.html").read_text()


def test_times_that_were_not_taken_side_by_side_do_not_count(tmp_path: Path) -> None:
    fair = {"name": "a", "kind": "make", "replaces": "", "status": "identical", "reason": "", "result": _RESULT}
    earlier = {**_NATIVE, "side_by_side": False}
    apart = {**_RESULT, "native": earlier, "times": {"wall_s": 90.0, "cpu_s": 90.0}}
    rows = {"a": fair, "b": {**fair, "name": "b", "result": apart}}
    pages.write(tmp_path, [], rows)
    facts = json.loads((tmp_path / "survey.json").read_text())["summary"]
    assert (facts["timed"], facts["wall_ratio_median"]) == (1, 1.5)
    assert "(45.00)" in (tmp_path / "survey.md").read_text()


def test_packages_that_were_not_reached_are_told(tmp_path: Path) -> None:
    pages.write(tmp_path, [survey.Wanted("hello", "autotools", 1)], {})
    assert json.loads((tmp_path / "survey.json").read_text())["summary"]["status"] == {"not reached": 1}


def test_the_table_fits_the_terminal() -> None:
    drawn = table.draw({"hello": "running", "sl": "identical"}, 3, 61.0, 60)
    assert all(len(line) < 60 for line in drawn)
    assert "1/3" in drawn[0]
