"""Remote caches of each kind, real servers and bad ones: shared results are exact, and nothing else comes in."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from cacheserver import CacheServer, serving
from under_detbox import environment

from detbox.cache.store import Store
from detbox.report.tree import Entry, snapshot

SCRIPT = "cat in > out; date +%N >> out; mkdir d; ln -s ../out d/l; echo said; echo too >&2; exit 3"
WAIT_S = 15


@dataclass
class Machine:
    """A host with a cache of its own; ``run`` gives all that a user sees, what came of it, and stderr's messages."""

    top: Path
    options: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    runs: int = 0

    def run(self, script: str = SCRIPT, text: str = "input\n") -> tuple[tuple[int, bytes, dict[str, Entry]], str, str]:
        self.runs += 1
        work = self.top / f"run{self.runs}" / "work"
        work.mkdir(parents=True)
        (work / "in").write_text(text)
        for path in (work / "in", work):
            os.utime(path, ns=(10**18, 10**18))
        argv = [sys.executable, "-m", "detbox", "run", "--cache", f"--cache-dir={self.top}/cache", *self.options]
        done = subprocess.run(
            [*argv, "--", "sh", "-c", script], cwd=work, env={**os.environ, **environment(), **self.env},
            capture_output=True, check=False,
        )  # fmt: skip
        store = Store(str(self.top / "cache"))
        result = store.runs()[0]["result"]
        store.close()
        assert b"Traceback" not in done.stderr
        seen = (done.returncode, done.stdout, snapshot(work, (os.geteuid(), os.getegid())))
        return seen, result, done.stderr.decode()


    def inside(self) -> str:
        """What came of the programs inside of the last run: first letters."""
        store = Store(str(self.top / "cache"))
        found = "".join(one["result"][0] for one in store.runs()[0]["executions"])
        store.close()
        return found


def machines(tmp_path: Path, *options: str, **env: str) -> tuple[Machine, Machine]:
    return Machine(tmp_path / "one", options, env), Machine(tmp_path / "two", options, env)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(argv: list[str], port: int) -> Iterator[None]:
    """A server that listens."""
    assert shutil.which(argv[0]), f"{argv[0]} is missing; `make test` installs it"
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + WAIT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None and time.monotonic() < end, f"{argv[0]} does not listen"
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait()


NGINX = """
daemon off; pid {top}/nginx.pid; error_log {top}/error.log; {user}
events {{}}
http {{
  access_log off; client_body_temp_path {top}/body; client_max_body_size 0;
  proxy_temp_path {top}/p; fastcgi_temp_path {top}/f; uwsgi_temp_path {top}/u; scgi_temp_path {top}/s;
  server {{ listen 127.0.0.1:{port}; root {top}/files; location / {{ dav_methods PUT; create_full_put_path on; }} }}
}}
"""


@contextlib.contextmanager
def nginx(top: Path) -> Iterator[str]:
    port = free_port()
    (top / "files").mkdir(parents=True)
    user = "user root;" if os.geteuid() == 0 else ""
    (top / "nginx.conf").write_text(NGINX.format(top=top, port=port, user=user))
    with started(["/usr/sbin/nginx", "-c", str(top / "nginx.conf")], port):
        yield f"http://127.0.0.1:{port}/"


@contextlib.contextmanager
def redis_server(top: Path, *options: str) -> Iterator[str]:
    port = free_port()
    top.mkdir()
    argv = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(top), *options]
    with started(argv, port):
        yield f"redis://127.0.0.1:{port}/0"


@contextlib.contextmanager
def directory(top: Path) -> Iterator[str]:
    top.mkdir()
    yield str(top)


@contextlib.contextmanager
def own(top: Path) -> Iterator[str]:
    with serving() as server:
        yield server.url


@pytest.mark.parametrize("kind", [directory, own, nginx, redis_server])
def test_another_machine_gets_the_result(tmp_path: Path, kind: Any) -> None:
    plain, _, _ = Machine(tmp_path / "plain", ()).run()
    with kind(tmp_path / "remote") as url:
        one, two = machines(tmp_path, f"--cache-remote={url}")
        assert one.run() == (plain, "miss", "too\n")
        assert two.run() == (plain, "hit", "too\n")
        changed, result, _ = two.run(text="other\n")
        assert result == "miss" and changed != plain
        assert two.inside() == "mmhhm", "mkdir and ln were run on the other machine"
        assert one.run(text="other\n")[:2] == (changed, "hit")
        assert one.run()[:2] == (plain, "hit")
    assert two.run()[:2] == (plain, "hit")  # it has become its own


#: Wrong answers are like none, unless there are many.
WRONG = ("lies", "cuts", "floods")
FAULTS = ("hangs", "fails", "lies", "cuts", "floods", "drips", "forbids", "redirects")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_server_costs_time_and_nothing_else(tmp_path: Path, fault: str) -> None:
    with serving() as server:
        one, two = machines(tmp_path, f"--cache-remote={server.url}", "--cache-remote-timeout=1")
        plain, _, _ = one.run()
        server.fault = fault
        server.asked.clear()
        begun = time.monotonic()
        seen, result, said = two.run()
        took = time.monotonic() - begun
        assert (seen, result) == (plain, "miss")
        if fault not in WRONG:
            assert "detbox: the cache: http://127.0.0.1" in said and "left out" in said
        assert took < 12, "one time-out of a second, and the run"
        assert len(server.asked) <= 20
        server.fault = ""
        assert two.run()[:2] == (plain, "hit")


def test_wrong_content_is_mended(tmp_path: Path) -> None:
    with directory(tmp_path / "remote") as url:
        one, two = machines(tmp_path, f"--cache-remote={url}")
        plain, _, _ = one.run()
        for path in (tmp_path / "remote" / "cas").iterdir():
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        assert two.run()[:2] == (plain, "miss")
        three = Machine(tmp_path / "three", (f"--cache-remote={url}",))
        assert three.run()[:2] == (plain, "hit")


def test_a_passing_fault_is_tried_again(tmp_path: Path) -> None:
    with serving() as server:
        one, two = machines(tmp_path, f"--cache-remote={server.url}")
        plain, _, _ = one.run()
        server.fault = "fails once"
        assert two.run() == (plain, "hit", "too\n")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "redis://127.0.0.1:9", "/does/not/exist", "http://[::1]:9/x"])
def test_nobody_there(tmp_path: Path, url: str) -> None:
    one, _ = machines(tmp_path, f"--cache-remote={url}")
    _, result, said = one.run()
    assert result == "miss" and "left out" in said
    assert one.run()[1] == "hit"


def test_half_open(tmp_path: Path) -> None:
    """A server whose host takes the connection and is silent."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for scheme in ("http", "redis"):
            url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/0"
            machine = Machine(tmp_path / scheme, (f"--cache-remote={url}", "--cache-remote-timeout=0.5"))
            begun = time.monotonic()
            assert machine.run()[1] == "miss"
            assert time.monotonic() - begun < 10


def test_a_token(tmp_path: Path) -> None:
    with serving() as server:
        server.token = "s3cret"
        one, two = machines(tmp_path, f"--cache-remote={server.url}", "--stats", DETBOX_CACHE_TOKEN="s3cret")
        one.run()
        _, result, said = two.run()
        assert result == "hit" and "s3cret" not in said
        stranger = Machine(tmp_path / "three", (f"--cache-remote={server.url}",), {"DETBOX_CACHE_TOKEN": "wr0ng"})
        _, result, said = stranger.run()
        assert result == "miss" and "DETBOX_CACHE_TOKEN" in said and "wr0ng" not in said


def test_a_password_of_redis(tmp_path: Path) -> None:
    with redis_server(tmp_path / "remote", "--requirepass", "s3cret") as url:
        one, two = machines(tmp_path, f"--cache-remote={url}", DETBOX_CACHE_TOKEN="s3cret")
        one.run()
        assert two.run()[1] == "hit"
        stranger = Machine(tmp_path / "three", (f"--cache-remote={url}",))
        _, result, said = stranger.run()
        assert result == "miss" and "DETBOX_CACHE_TOKEN" in said


def test_read_only(tmp_path: Path) -> None:
    with serving() as server:
        reader = Machine(tmp_path / "reader", (f"--cache-remote={server.url}", "--cache-remote-read-only"))
        assert reader.run()[1] == "miss" and not server.held
        server.fault = "read-only"
        writer = Machine(tmp_path / "writer", (f"--cache-remote={server.url}",))
        _, result, said = writer.run()
        assert result == "miss" and "takes nothing" in said and not server.held


def test_signed_candidates(tmp_path: Path) -> None:
    with serving() as server:
        option = f"--cache-remote={server.url}"
        stranger = Machine(tmp_path / "stranger", (option,))
        plain, _, _ = stranger.run()
        one, two = machines(tmp_path, option, DETBOX_CACHE_SIGNATURE="a key")
        assert one.run()[:2] == (plain, "miss")
        assert two.run()[:2] == (plain, "hit")


# -- a server that has been taken over -------------------------------------------------------


def lines(data: bytes) -> list[bytes]:
    """The texts of what is listed: one manifest, or a bundle of results of the programs inside."""
    return [data] if data[:1] == b"{" else zlib.decompress(data).split(b"\0")


def forged_line(line: bytes, change: Any) -> bytes:
    if line[:1] == b"{":
        manifest = json.loads(line)
        change(manifest)
        return json.dumps(manifest).encode()
    head, rest, *rows = line[65:].split(b"\n")
    result = {**json.loads(rest), "facts": {}}
    change(result)
    more = [json.dumps([path, 4, row]).encode() for path, row in dict(result.pop("facts", {})).items()]
    return line[:65] + b"\n".join([head, json.dumps(result).encode(), *rows, *more])


def forge(server: CacheServer, change: Any) -> None:
    """Replace every manifest by one that is changed, named and listed as it should be."""
    for name, data in list(server.held.items()):
        if not name.startswith("ac/"):
            continue
        listed = json.loads(data)
        for row in listed["candidates"]:
            forged = b"\0".join(forged_line(line, change) for line in lines(server.held[f"cas/{row['manifest']}"]))
            if server.held[f"cas/{row['manifest']}"][:1] != b"{":
                forged = zlib.compress(forged)
            row.update(manifest=hashlib.sha256(forged).hexdigest(), size=len(forged))
            server.held[f"cas/{row['manifest']}"] = forged
        server.held[name] = json.dumps(listed).encode()


def file_at(path: str) -> Any:
    def change(manifest: dict[str, Any]) -> None:
        for row in manifest["changes"]:
            if row["do"] == "file":
                row["path"] = path

    return change


def through_a_link(manifest: dict[str, Any]) -> None:
    for row in manifest["changes"]:
        if row["do"] == "symlink":
            row["text"] = "{outside}"
    file_at("/work/d/l/planted")(manifest)


FORGERIES = {
    "the system": file_at("/etc/planted"),
    "dots": file_at("/work/../etc/planted"),
    "relative": file_at("planted"),
    "through a link": through_a_link,
    "unknown field": lambda manifest: manifest.update(extra=1),
    "no facts": lambda manifest: manifest.update(facts=[]),
    "strange status": lambda manifest: manifest.update(status="0"),
    "endless fact": lambda manifest: manifest["facts"].update({"/dev/zero": [None, None, "0" * 32]}),
    "nothing": lambda manifest: manifest.clear(),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_manifest_reaches_nothing(tmp_path: Path, name: str) -> None:
    with serving() as server:
        one, two = machines(tmp_path, f"--cache-remote={server.url}", "--cache-remote-timeout=2")
        plain, _, _ = one.run()
        forge(server, FORGERIES[name])
        outside = tmp_path / "outside"
        outside.mkdir()
        server.held = {key: data.replace(b"{outside}", bytes(outside)) for key, data in server.held.items()}
        # A result of a program inside that has the right form may be wrong, but goes nowhere else.
        three = Machine(tmp_path / "three", (*one.options, "--cache-remote-read-only"))
        assert three.run()[1] == "miss"
        server.held = {key: data for key, data in server.held.items() if key[:2] == "ac" or data[:1] == b"{"}
        assert two.run()[:2] == (plain, "miss")
        assert not os.path.exists("/etc/planted") and not list(outside.iterdir())
