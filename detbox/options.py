"""The options of a run, one row each.

The command line, the configuration file and the Python interface take their
names and types from this table, so that they cannot drift apart.
"""

from __future__ import annotations

from enum import Enum

from detbox.records import NamedTuple


class Kind(Enum):
    """What an option's value looks like."""

    TEXT = "text"  # one string
    NUMBER = "number"  # an integer, or text that spells one
    PATH = "path"  # a host path; relative to the current directory or to the configuration file
    IMAGE = "image"  # a name in the store, or a host path
    PATHS = "paths"  # a list of SRC[:DST]; several add up
    ENV = "env"  # a list of K=V or K; several add up
    SWITCH = "switch"  # present or absent
    MODE = "mode"  # present, or one of a few words: --name=WORD
    PERCENT = "percent"  # present (100), or one of a few numbers: --name=NUMBER
    COUNT = "count"  # may be given several times


class Option(NamedTuple):
    """One option: ``name`` as on the command line without dashes, ``short`` a one-letter form."""

    name: str
    kind: Kind
    metavar: str
    help: str
    short: str = ""

    @property
    def key(self) -> str:
        """The name as a Python identifier."""
        return self.name.replace("-", "_")


OPTIONS: tuple[Option, ...] = (
    Option(
        "workdir",
        Kind.PATH,
        "DIR",
        "the work directory, /work in the guest; what the command leaves "
        "there stays (default: the current directory)",
        short="C",
    ),
    Option(
        "image",
        Kind.IMAGE,
        "IMAGE",
        "root file system: an image's name (see `detbox image`), a directory or a tarball "
        "(default: the host's own, read-only)",
    ),
    Option(
        "ro", Kind.PATHS, "SRC[:DST]", "show SRC read-only in the guest at DST (default: at the same path)"
    ),
    Option("rw", Kind.PATHS, "SRC[:DST]", "the same, writable; what the command leaves there stays"),
    Option("env", Kind.ENV, "K[=V]", "set an environment variable; without =V its value is passed through"),
    Option(
        "epoch",
        Kind.TEXT,
        "WHEN",
        "when the run begins: seconds since 1970, or a date such as "
        "2026-01-01T12:00:00Z (default: SOURCE_DATE_EPOCH if it is declared with --env, else 2026-01-01)",
    ),
    Option("seed", Kind.NUMBER, "N", "seed of every random number in the guest (default: 0)"),
    Option("cpus", Kind.NUMBER, "N", "number of virtual CPUs (default: 4, whatever the host has)"),
    Option("cpu-model", Kind.TEXT, "MODEL", "CPU that the guest sees (default: x86-64-v3)"),
    Option("user", Kind.TEXT, "USER", "NAME, UID or UID:GID that the command runs as (default: root)"),
    Option("network", Kind.TEXT, "none|loopback", "network of the guest (default: loopback, its own)"),
    Option("stdin", Kind.PATH, "FILE", "read the guest's standard input from FILE (default: detbox's own)"),
    Option("timeout", Kind.TEXT, "TIME", "end the run after so much real time: seconds, or 90s, 5m, 2h"),
    Option("memory", Kind.TEXT, "SIZE", "memory limit of each process and of the whole run: bytes, or 512M, 4G"),
    Option(
        "cache",
        Kind.MODE,
        "read|write|both|off",
        "put the results of a former run in place if nothing that it looked at has changed, and keep "
        "those of this run (default: both; without the option, what DETBOX_CACHE says)",
    ),
    Option("cache-dir", Kind.PATH, "DIR", "the cache's directory (default: ~/.cache/detbox/results)"),
    Option(
        "cache-verify",
        Kind.PERCENT,
        "PERCENT",
        "run so many of the hits all the same, and compare every byte (default: all)",
    ),
    Option(
        "cache-remote",
        Kind.TEXT,
        "URL",
        "share results with others: a directory, http(s)://HOST/PATH, redis(s)://HOST[:PORT]/DB or unix://SOCKET; "
        "a password or token comes from DETBOX_CACHE_TOKEN (default: DETBOX_CACHE_REMOTE, else none)",
    ),
    Option("cache-remote-read-only", Kind.SWITCH, "", "take results from the remote cache, and give it none"),
    Option(
        "cache-remote-timeout", Kind.TEXT, "TIME", "leave the remote cache out once it is slower (default: 10s)"
    ),
    Option(
        "cache-max-size", Kind.TEXT, "SIZE",
        "what was used least recently is removed once the cache is larger: bytes, or 512M, 4G (default: 10G)",
    ),
    Option("strict", Kind.SWITCH, "", "make every doubt about determinism fatal (status 122)"),
    Option("stats", Kind.SWITCH, "", "after the run, report calls by kind, notifications, stops and times"),
    Option("dry-run", Kind.SWITCH, "", "print the container's set-up and do not run anything"),
    Option("verbose", Kind.COUNT, "", "say more on standard error; twice: every process", short="v"),
)

BY_NAME: dict[str, Option] = {option.name: option for option in OPTIONS}

#: The words that an option of kind MODE or PERCENT may be given, and the one that it stands for when alone.
WORDS: dict[Kind, tuple[tuple[str, ...], str]] = {
    Kind.MODE: (("read", "write", "both", "off"), "both"),
    Kind.PERCENT: (("0", "1", "2", "5", "10", "20", "50", "100"), "100"),
}
