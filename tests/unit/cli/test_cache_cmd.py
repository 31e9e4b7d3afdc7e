"""`detbox cache`: what is stored is listed, checked, removed and carried to another store."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from detbox.cache.manifest import Manifest
from detbox.cache.store import Store
from detbox.cli.main import main

HASH = "0" * 32


def manifest(digest: str, size: int) -> Manifest:
    change: dict[str, Any] = {"path": "/work/out", "do": "file", "was": "-", "mode": 0o644, "times": [1, 1]}
    change.update(blob=digest, size=size)
    stdin = {"taken": 0, "content": HASH, "ended": False}
    return Manifest({"/work": ["d755"]}, {}, [change], 0, "", [], stdin, seconds=1.5, command=["make", "all"])


def fill(directory: Path) -> list[str]:
    """Two results with one blob each; their keys."""
    store = Store(str(directory))
    keys = []
    for text in (b"first", b"second one"):
        made = manifest(store.put_bytes(text), len(text))
        keys.append(hashlib.sha256(text).hexdigest())
        store.publish(keys[-1], made.to_bytes(), made.blobs())
    store.log_run({"command": ["make", "all"], "result": "hit", "why": "", "seconds": 0.1, "saved": 1.4})
    store.close()
    return keys


def ask(directory: Path, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["cache", *words, "--json", f"--cache-dir={directory}"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_action_shows_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = fill(tmp_path / "a")
    for words in (["stats"], ["why"], ["runs"], ["list"], ["show", keys[0][:8]], ["check"], ["gc"]):
        assert main(["cache", *words, f"--cache-dir={tmp_path / 'a'}"]) == 0
        assert capsys.readouterr().out.strip()


def test_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "a")
    found = ask(tmp_path / "a", capsys, "stats")
    assert (found["results"], found["blobs"], found["blob bytes"]) == (2, 2, 15)
    assert (found["runs: hit"], found["runs: miss"], found["seconds saved"]) == (1, 0, 1.4)


def test_list_and_rm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = fill(tmp_path / "a")
    rows = ask(tmp_path / "a", capsys, "list")
    assert [row["key"] for row in rows] == keys[::-1]
    assert rows[0]["command"] == ["make", "all"] and rows[0]["complete"]
    time.sleep(0.01)
    assert ask(tmp_path / "a", capsys, "rm", keys[0][:10])["results removed"] == 1
    assert [row["key"] for row in ask(tmp_path / "a", capsys, "list")] == keys[1:]
    assert ask(tmp_path / "a", capsys, "rm", "--all")["results kept"] == 0
    assert ask(tmp_path / "a", capsys, "stats")["blobs"] == 0


def test_check_says_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "a")
    digest = hashlib.sha256(b"first").hexdigest()
    next((tmp_path / "a").rglob(digest[2:])).write_bytes(b"wrong")
    assert main(["cache", "check", f"--cache-dir={tmp_path / 'a'}"]) == 1
    assert digest in capsys.readouterr().out
    assert main(["cache", "check", f"--cache-dir={tmp_path / 'a'}"]) == 0


def test_an_archive_carries_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = fill(tmp_path / "a")
    archive = str(tmp_path / "results.tar")
    assert ask(tmp_path / "a", capsys, "export", archive) == {"results written": 2, "blobs written": 4}
    assert ask(tmp_path / "b", capsys, "import", archive) == {"results taken": 2, "refused": 0}
    one, two = Store(str(tmp_path / "a")), Store(str(tmp_path / "b"))
    for key in keys:
        assert two.candidates(key) == one.candidates(key)
    assert two.open_blob(hashlib.sha256(b"first").hexdigest()) == b"first"


def test_a_hostile_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong content, paths to elsewhere, links, and manifests that write outside are refused."""
    evil = manifest(hashlib.sha256(b"good").hexdigest(), 4)
    evil.changes[0]["path"] = "/work/../etc/passwd"
    data = evil.to_bytes()
    digest = hashlib.sha256(data).hexdigest()
    listed = json.dumps({"format": 1, "candidates": [{"manifest": digest, "size": len(data)}]}).encode()
    members = {
        "cas/" + hashlib.sha256(b"good").hexdigest(): b"good", "cas/" + "a" * 64: b"wrong", f"cas/{digest}": data,
        "../outside": b"x", "/etc/outside": b"x", "ac/" + "b" * 64: listed, "ac/" + "c" * 64: b"[" * 100_000,
    }  # fmt: skip
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("cas/" + "d" * 64)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert ask(tmp_path / "b", capsys, "import", str(tmp_path / "evil.tar"))["results taken"] == 0
    assert ask(tmp_path / "b", capsys, "list") == []
    assert {path.name for path in tmp_path.iterdir()} == {"evil.tar", "b"}


@pytest.mark.parametrize(
    "words", [["import", "/etc/passwd"], ["import", "missing"], ["show", "ffff"], ["rm"], ["why", "9"],
              ["gc", "--max-size", "much"], ["gc", "--max-age", "-1"]]
)  # fmt: skip
def test_mistakes_are_said(tmp_path: Path, words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", *words, f"--cache-dir={tmp_path / 'a'}"]) == 125
    said = capfd.readouterr().err
    assert said.startswith("detbox: ") and "Traceback" not in said
