"""Describes the machine that a table was measured on, without its name or any path."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def describe() -> list[str]:
    """One line for each fact."""
    cpu = "unknown"
    virtual = False
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            cpu = value.strip()
        elif name.strip() == "flags":
            virtual = "hypervisor" in value.split()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    one, _, fifteen = os.getloadavg()
    return [
        f"CPU: {cpu}, {os.cpu_count()} cores, {'virtual machine' if virtual else 'not virtualised'}",
        f"memory: {memory:.0f} GiB",
        f"kernel: Linux {platform.release().split('-')[0]}",
        f"Python {platform.python_version()} (runs detbox), {_first_line('gcc', '--version')}",
        f"load average at the end: {one:.1f} (1 minute), {fifteen:.1f} (15 minutes)",
    ]


def _first_line(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return f"no {command[0]}"
