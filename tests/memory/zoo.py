"""The memory zoo (zoo.c): its program, made once, and what it says.

It tells of every region `region PROCESS NAME ADDRESS PAGES DIGEST ok`; after the last region of the
last process `verified TICKS well`, or BADLY.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bed.environment import fingerprint
from bed.fetch import cache_folder

HERE = Path(__file__).parent
SOURCES = [HERE / f"{name}.c" for name in ("zoo", "regions", "access", "content")]
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wformat=2", "-Wmissing-prototypes"]
# No restartable sequences: the kernel writes the processor's number into each thread's memory.
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}
ROLES = ("main", "child", "alone")
# What the kernel must say of a region (VmFlags in /proc/PID/smaps), where it is not just memory.
FLAGS: Mapping[str, str] = {
    "stack": "gd",
    "sparse": "nr",
    "locked": "lo",
    "jit": "ex",
    "huge": "hg",
    "small": "nh",
    "not-forked": "dc",
    "wiped": "wf",
    "not-dumped": "dd",
    "sequential": "sr",
    "random": "rr",
    "shared": "sh",
    "memfd": "sh",
    "tmpfs": "sh",
    "file": "sh",
}


class Region(NamedTuple):
    """What one process says about one region."""

    role: str
    name: str
    address: int
    pages: int
    digest: str
    verdict: str  # "ok", or what is wrong


def program() -> Path:
    """The static program, from the cache."""
    key = fingerprint([*SOURCES, HERE / "zoo.h"])[:12]
    place = cache_folder() / f"zoo-{key}"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        new = place.with_name(f".{place.name}.{os.getpid()}")
        sources = [str(source) for source in SOURCES]
        command = ["gcc", "-std=gnu17", "-O2", "-pthread", "-static", *WARNINGS, "-Werror"]
        subprocess.run([*command, "-o", str(new), *sources], check=True)
        new.rename(place)
    return place


def regions(log: str) -> list[Region]:
    """What all processes said when they last verified their memory."""
    lines = log.splitlines()
    ends = [n for n, line in enumerate(lines) if line.startswith("verified ")]
    assert ends, f"nothing was verified: {log[-2000:]}"
    begin = ends[-2] + 1 if len(ends) > 1 else 0
    words = [line.split(" ", 6) for line in lines[begin : ends[-1]] if line.startswith("region ")]
    return [
        Region(role, name, int(address, 16), int(pages), digest, verdict)
        for _, role, name, address, pages, digest, verdict in words
    ]


def complaints(log: str) -> list[str]:
    """The regions that were not as they should be at the last verification."""
    return [
        f"{region.role}'s {region.name}: {region.verdict}"
        for region in regions(log)
        if region.verdict != "ok"
    ]


def last(log: str, verb: str) -> str:
    """The last line that begins with `verified` or `went on`."""
    return next(line for line in reversed(log.splitlines()) if line.startswith(verb))
