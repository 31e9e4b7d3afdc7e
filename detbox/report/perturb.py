"""Hosts that differ in everything that must not matter, and the byte-wise comparison of runs on them.

``PERTURBATIONS`` is the table.  A *host* takes one value from each row; ``variants(n)`` gives hosts that
differ from each other in every row that can be applied with the rights at hand.  ``Host.run`` gives the
command a fresh copy of the inputs, made in the host's own order and place, and observes everything that a
user could see afterwards.  ``compare`` normalises nothing.

The machine's clock is never set: a time namespace cannot shift CLOCK_REALTIME.  The wall clock differs
because the runs take place at different times ("time of run").
"""

from __future__ import annotations

import os
import pty
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from detbox.report.copies import Copies, copy_file
from detbox.report.enter import end_with_parent, enter
from detbox.report.leftovers import MEMORY_DIR
from detbox.report.scratch import Scratch, remove_tree
from detbox.report.tree import Entry, snapshot

_ALWAYS = "always"


@dataclass(frozen=True)
class Perturbation:
    """One row: a property of the host, the values that hosts take in turn, and what they need."""

    name: str
    changes: str
    values: tuple[Any, ...]
    needs: str = _ALWAYS  # "always", "root", "tmpfs" or "several" (processors)

    def applicable(self) -> bool:
        """Whether this process has what the row needs."""
        return not self.obstacle()

    def obstacle(self) -> str:
        """Why the row cannot be applied here; "" if it can."""
        if self.needs == "root" and os.geteuid() != 0:
            return "only root can change it"
        if self.needs == "tmpfs" and not os.access(MEMORY_DIR, os.W_OK | os.X_OK):
            return f"{MEMORY_DIR} cannot be written"
        if self.needs == "several" and len(os.sched_getaffinity(0)) < 2:
            return "there is only one processor to use"
        return ""


#: Added to the time of every input, in nanoseconds: what an earlier run has left has the very times that this one
#: will give, and could not be told from what nobody touched.
_APART_NS = -86_400 * 10**9 - 7
_HOSTILE_ENV = {
    "EDITOR": "false", "GREP_COLORS": "mt=01", "MAKEFLAGS": "-k", "TERM": "dumb", "COLUMNS": "40",
    "LINES": "11", "PYTHONHASHSEED": "7", "PS1": "hostile> ", "XDG_RUNTIME_DIR": "/nowhere", "DISPLAY": ":9",
    "POSIXLY_CORRECT": "1", "MALLOC_ARENA_MAX": "1", "CFLAGS": "-O0", "TMPDIR": "/var/tmp",
    "A" * 300: "z" * 3000,
}
_SOFT_LIMITS = {
    "NOFILE": 777, "CORE": -1, "STACK": 16 << 20, "FSIZE": 1 << 40, "MEMLOCK": 65536, "SIGPENDING": 20,
    "MSGQUEUE": 1000,
}  # fmt: skip

PERTURBATIONS: tuple[Perturbation, ...] = (
    Perturbation("time of run", "seconds of real time before the start", (0.0, 1.1)),
    Perturbation("hostname", "the host's name, in a UTS namespace", (None, "other-host.example"), "root"),
    Perturbation("kernel release", "what uname says: the same, or 2.6.x (UNAME26 of personality)", (False, True)),
    Perturbation("user", "who runs the command: user, groups and HOME", (None, "unprivileged"), "root"),
    Perturbation("environment", "every variable that is not declared", ({}, _HOSTILE_ENV)),
    Perturbation("umask", "the mask for new files", (0o022, 0o077, 0o002)),
    Perturbation("locale", "LANG and LC_ALL", ("C", "et_EE.UTF-8", "tr_TR.UTF-8")),
    Perturbation("time zone", "TZ", ("UTC", "Pacific/Chatham", "America/St_Johns")),
    Perturbation("path", "where the work directory is", ("w", "deeper/ünder/a b/work")),
    Perturbation("creation order", "the order in which the inputs are created", (0, 1, 2)),
    Perturbation("inodes", "other files created among the inputs", (0, 7, 3)),
    Perturbation("mtimes", "seconds added to the inputs' times", (0, -86_400 * 900, 86_400 * 30)),
    Perturbation("file system", "disk or memory under the work directory", ("disk", "memory"), "tmpfs"),
    Perturbation("processors", "how many of the allowed CPUs it may use, the last ones", (None, 1), "several"),
    Perturbation("load", "busy processes in the background", (0, 1)),
    Perturbation("nice", "niceness and scheduling class", (0, 5)),
    Perturbation("limits", "soft resource limits", ({}, _SOFT_LIMITS)),
    Perturbation("process numbers", "processes started before the run", (0, 13, 101)),
    Perturbation("address randomisation", "ADDR_NO_RANDOMIZE of the caller", (False, True)),
    Perturbation("terminal", "a controlling terminal and standard input from it", (False, True)),
    Perturbation("memory", "bytes taken from the free memory", (0, 128 << 20)),
    Perturbation("descriptors", "inherited descriptors", (0, 3)),
    Perturbation("signals", "inherited ignored and blocked signals", (False, True)),
)


@dataclass(frozen=True)
class Observed:
    """Everything a user can see after a run.

    ``status``: exit status, or minus the signal that ended it.  ``tree``: entries by relative path.
    ``seconds``: real time taken; it is not compared.  ``work``: where the output tree is, if it was left.
    """

    status: int
    stdout: bytes
    stderr: bytes
    tree: Mapping[str, Entry]
    seconds: float = field(compare=False, default=0.0)
    work: Path | None = field(compare=False, default=None)


@dataclass(frozen=True)
class Difference:
    """One thing that differs: ``what`` ("status", "stdout", "tree"), where, and both values.

    ``path``: of the entry, for what "tree".
    """

    what: str
    where: str
    left: str
    right: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.what} {self.where}: {self.left} | {self.right}"


def applicable() -> dict[str, bool]:
    """Name of each perturbation, and whether it can be applied here."""
    return {p.name: p.applicable() for p in PERTURBATIONS}


def variants(n: int, *, user: str | None = None, without: Iterable[str] = ()) -> list[Host]:
    """``n`` hosts, each unlike the one before in every row of the table.

    ``user``: name of an unprivileged user for the "user" row; without one that row is left out.
    ``without``: names of rows to leave at their first value.  Raises ValueError for an unknown name.
    """
    skipped = set(without) | ({"user"} if user is None else set())
    unknown = skipped - {p.name for p in PERTURBATIONS}
    if unknown:
        raise ValueError(f"no such perturbation: {', '.join(sorted(unknown))}")
    hosts = []
    for i in range(n):
        values = {
            p.name: p.values[0 if p.name in skipped or not p.applicable() else i % len(p.values)]
            for p in PERTURBATIONS
        }
        if values["user"] is not None:
            values["user"] = user
        hosts.append(Host(f"host{i}", values))
    return hosts


@dataclass(frozen=True)
class Host:
    """One value for each row of the table."""

    name: str
    settings: Mapping[str, Any]

    def run(
        self,
        argv: Sequence[str],
        inputs_dir: Path | None = None,
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        keep: Path | None = None,
        places: Scratch | None = None,
        before: Callable[[Path], None] | None = None,
    ) -> Observed:
        """Run ``argv`` in a fresh copy of ``inputs_dir`` on this host.

        ``env``: variables that the caller needs besides the host's (a PYTHONPATH, say).
        ``timeout``: real seconds; then the whole process group is killed and TimeoutExpired raised.
        ``keep``: a directory that receives a copy of the output tree.
        ``places``: where the copy is made; it stays there.
        ``before``: called with the copy's path before the command starts.
        """
        with ExitStack() as stack:
            base = self._base(places, stack)
            work = base / self.settings["path"]
            work.mkdir(parents=True)
            self._copy_inputs(inputs_dir, base, work)
            untouched = snapshot(work, owner_of(self.settings["user"]))
            if before is not None:
                before(work)
            self._disturb(stack)
            status, out, err, seconds = self._execute(argv, work, stdin, env or {}, timeout, stack)
            after = snapshot(work, owner_of(self.settings["user"]))
            if keep is not None:
                shutil.copytree(work, keep, symlinks=True, dirs_exist_ok=True, copy_function=copy_file)
            tree = {p: entry.untouched() if untouched.get(p) == entry else entry for p, entry in after.items()}
            return Observed(status, out, err, tree, seconds, work if places is not None else None)

    def _base(self, places: Scratch | None, stack: ExitStack) -> Path:
        memory = self.settings["file system"] == "memory"
        if places is not None:
            return places.directory(memory)
        base = Path(tempfile.mkdtemp(prefix="perturb-", dir=MEMORY_DIR if memory else None))
        stack.callback(remove_tree, base)
        base.chmod(0o755)
        return base

    def _copy_inputs(self, inputs_dir: Path | None, base: Path, work: Path) -> None:
        """A fresh copy with the same content and modes, in this host's order, among its other files."""
        copies = Copies(inputs_dir, work)
        random.Random(self.settings["creation order"]).shuffle(copies.others)
        for name in copies.others:
            for _ in range(self.settings["inodes"]):
                os.close(tempfile.mkstemp(dir=work.parent)[0])
            copies.make(name)
        owner = owner_of(self.settings["user"])
        copies.settle(owner, self.settings["mtimes"] * 10**9 + _APART_NS)
        top = work
        while top != base:
            os.chown(top, *owner)
            top = top.parent

    def _disturb(self, stack: ExitStack) -> None:
        """Load, taken memory, burnt process numbers and elapsed time; the stack undoes what lasts."""
        for _ in range(self.settings["load"]):
            busy = subprocess.Popen(
                ["/bin/sh", "-c", "while :; do :; done"], preexec_fn=partial(end_with_parent, os.getpid())
            )
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        if self.settings["memory"]:
            taken = bytearray(b"\1") * self.settings["memory"]
            stack.callback(taken.clear)
        for _ in range(self.settings["process numbers"]):
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
        time.sleep(self.settings["time of run"])

    def environment(self, declared: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of a command on this host."""
        user = self.settings["user"]
        home = os.path.expanduser(f"~{user}" if user else "~")
        env: dict[str, str] = {"PATH": os.environ.get("PATH", os.defpath), "HOME": home}
        env |= self.settings["environment"]
        env |= {"LANG": self.settings["locale"], "LC_ALL": self.settings["locale"]}
        env["TZ"] = self.settings["time zone"]
        if user:
            env |= {"USER": user, "LOGNAME": user, "PATH": os.defpath}
        return env | dict(declared)

    def _execute(
        self,
        argv: Sequence[str],
        work: Path,
        stdin: bytes,
        env: Mapping[str, str],
        timeout: float | None,
        stack: ExitStack,
    ) -> tuple[int, bytes, bytes, float]:
        extra = [os.open(os.devnull, os.O_RDONLY) for _ in range(self.settings["descriptors"])]
        terminal = self.settings["terminal"]
        source, given = (_terminal(stdin, stack), None) if terminal else (subprocess.PIPE, stdin)
        prepare: Callable[[], None] = partial(enter, self.settings, terminal, os.getpid())
        started = time.monotonic()
        child = subprocess.Popen(
            list(argv), cwd=work, env=self.environment(env), stdin=source, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, pass_fds=extra, start_new_session=True,
            preexec_fn=prepare,  # safe: all that it calls was loaded before the fork
        )
        for fd in extra:
            os.close(fd)
        try:
            out, err = child.communicate(given, timeout)
        except subprocess.TimeoutExpired as expired:
            os.killpg(child.pid, signal.SIGKILL)
            out, err = child.communicate()
            raise subprocess.TimeoutExpired(expired.cmd, expired.timeout, out, err) from None
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            raise
        return child.returncode, out, err, time.monotonic() - started


def compare(a: Observed, b: Observed) -> list[Difference]:
    """Every difference between two runs; empty if they are identical."""
    found = []
    if a.status != b.status:
        found.append(Difference("status", "", str(a.status), str(b.status)))
    for what, left, right in (("stdout", a.stdout, b.stdout), ("stderr", a.stderr, b.stderr)):
        if left != right:
            found.append(_first_line(what, left, right))
    for path in sorted(a.tree.keys() | b.tree.keys()):
        x, y = a.tree.get(path), b.tree.get(path)
        if x is None or y is None:
            found.append(Difference("tree", path, _present(x), _present(y), path))
        elif x != y:
            for name, p, q in x.differing(y):
                found.append(Difference("tree", f"{path} {name}", _shown(name, p), _shown(name, q), path))
    return found


def _shown(name: str, value: object) -> str:
    """A field of an entry for people."""
    if name == "mode":
        return f"{value:04o}"
    if name == "mtime_ns" and isinstance(value, int):
        seconds, rest = divmod(value, 10**9)
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds)) + f".{rest:09}"
    return "untouched" if name == "mtime_ns" else str(value)


def _present(entry: Entry | None) -> str:
    return "absent" if entry is None else entry.kind


def _first_line(what: str, left: bytes, right: bytes) -> Difference:
    """The first line in which two streams differ."""
    lines, others = left.split(b"\n"), right.split(b"\n")
    for number, (x, y) in enumerate(zip(lines, others, strict=False), 1):
        if x != y:
            texts = [repr(line.decode("utf-8", "backslashreplace")) for line in (x, y)]
            return Difference(what, f"line {number}", texts[0], texts[1])
    shorter = min(len(lines), len(others))
    return Difference(what, f"after line {shorter}", f"{len(left)} bytes", f"{len(right)} bytes")


@lru_cache
def owner_of(user: str | None) -> tuple[int, int]:
    """uid and gid of the value of the row "user"."""
    import pwd

    if user is None:
        return os.geteuid(), os.getegid()
    record = pwd.getpwnam(user)
    return record.pw_uid, record.pw_gid


def _terminal(stdin: bytes, stack: ExitStack) -> int:
    """The slave of a new terminal on which ``stdin`` was typed, followed by an end of file."""
    master, slave = pty.openpty()
    stack.callback(os.close, master)
    stack.callback(os.close, slave)
    os.write(master, stdin + b"\x04")
    return slave
