"""The zoo is what it claims to be, and neither it nor the comparison misses a changed byte."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.bare import tree
from memory import zoo
from memory.compare import PAGE, differences, picture
from memory.running import Zoo, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="reads other processes' memory")
# Where a page that holds data can be changed under the zoo; the third page is nobody's special.
SPOILT = ["private", "dense", "huge", "locked", "shared", "memfd", "tmpfs", "readonly", "none"]


@pytest.fixture
def booted(tmp_path: Path) -> Iterator[Zoo]:
    with running(tmp_path) as booted:
        yield booted


def test_it_boots_goes_on_and_ends(booted: Zoo) -> None:
    assert booted.verify() == []
    first = {(r.role, r.name): r.digest for r in zoo.regions(booted.log)}
    assert booted.go_on() == "went on 1 well"
    assert booted.verify() == []
    second = {(r.role, r.name): r.digest for r in zoo.regions(booted.log)}
    assert first.keys() == second.keys()
    assert {role for role, _ in first} == set(zoo.ROLES)
    assert ("child", "not-forked") not in first
    assert first["main", "readonly"] == second["main", "readonly"]
    assert first["main", "private"] != second["main", "private"]
    assert first["main", "private"] != first["child", "private"] != first["alone", "private"]
    assert first["main", "shared"] == first["child", "shared"] != first["alone", "shared"]
    pids = tree(booted.pid)
    assert len(pids) == 3
    assert all(len(os.listdir(f"/proc/{pid}/task")) == 4 for pid in pids)


def test_the_kernel_sees_the_regions_as_they_are_meant(booted: Zoo) -> None:
    booted.verify()
    flags = flags_by_address(booted.pid)
    found = {
        region.name: flags[region.address]
        for region in zoo.regions(booted.log)
        if region.role == "main" and region.address in flags
    }
    assert {name: flag for name, flag in zoo.FLAGS.items() if flag not in found[name]} == {}


def test_two_pictures_of_the_same_are_equal_and_of_different_are_not(booted: Zoo) -> None:
    assert booted.verify() == []
    before = picture(booted.pid)
    assert differences(before, picture(booted.pid)) == []
    booted.go_on()
    said = differences(before, picture(booted.pid))
    counted = {name for name in ("rr", "hg", "wf", "lo") if any(f" {name}:" in s for s in said)}
    assert counted == {"rr", "hg", "wf", "lo"}
    assert any(line.startswith(f"process {booted.pid}: descriptor") for line in said)


def test_one_changed_byte_is_found_by_both(booted: Zoo) -> None:
    """In every kind of memory; all at once, as two pictures take seconds."""
    assert booted.verify() == []
    regions = {r.name: r.address for r in zoo.regions(booted.log) if r.role == "main"}
    places = {name: regions[name] + 3 * PAGE + 77 for name in SPOILT}
    before = picture(booted.pid)
    for address in places.values():
        flip(booted.pid, address)
    said = differences(before, picture(booted.pid))
    # Neighbours of one kind are one area: so many pages in all, in order and nowhere else.
    told = [re.search(r"process (\d+): .* (\d+) pages, the first (\w+):", line) for line in said]
    found = [(int(t[1]), int(t[2]), int(t[3], 16)) for t in told if t and "descriptor" not in t[0]]
    assert sum(count for pid, count, _ in found if pid == booted.pid) == len(SPOILT)
    assert {first for _, _, first in found} <= {address & -PAGE for address in places.values()}
    assert {f"main's {name}: page 3 is not what it was" for name in SPOILT} <= set(booted.verify())
    for address in places.values():
        flip(booted.pid, address)
    assert booted.verify() == []


def flip(pid: int, address: int) -> None:
    """Change one bit of a process's memory, wherever it is."""
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(address)
        [was] = memory.read(1)
        memory.seek(address)
        memory.write(bytes([was ^ 0x10]))


def flags_by_address(pid: int) -> dict[int, list[str]]:
    """VmFlags of each area that begins somewhere, and of all pages in it."""
    found: dict[int, list[str]] = {}
    for start, end, flags in _areas(pid):
        found.update(dict.fromkeys(range(start, end, PAGE * 256), flags))
        found[start] = flags
    return found


def _areas(pid: int) -> Iterator[tuple[int, int, list[str]]]:
    start = end = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head = line.partition(" ")[0]
        if line.startswith("VmFlags:"):
            yield start, end, line.split()[1:]
        elif not head.endswith(":"):
            start, end = (int(word, 16) for word in head.split("-"))
