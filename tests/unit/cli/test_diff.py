"""`thaw diff`: two snapshots of the same worker, and of another one."""

from __future__ import annotations

from pathlib import Path

from fakes import looked, snapshots
from fakes.command import Thaw
from fakes.images import noise
from fakes.looked import HEAP_SIZE
from fakes.snapshots import tar_of

from shim.cli.diff import Fact, facts
from shim.snapshot.config import SpecMount

HEAP = noise(HEAP_SIZE // 2, 1) + noise(HEAP_SIZE // 2, 9)


def test_the_same_twice(thaw: Thaw) -> None:
    looked.snapshot(thaw.store, "one")
    looked.snapshot(thaw.second, "two")
    said = thaw("diff", "one", "two")
    assert (said.status, said.err) == (0, "")
    assert said.lines[0] == "made from the same, and needing the same"
    assert "memory: 0 B differ, 1.4 MiB are equal" in said.lines
    assert "files of /: all equal" in said.lines
    found = thaw("diff", "one", "two", "-o", "json").json
    assert found["equal"]


def test_memory_and_files(thaw: Thaw) -> None:
    looked.snapshot(thaw.store, "one", contents={"rootfs.tar.0000": tar_of({"a": b"1", "b": b"1"})})
    looked.snapshot(
        thaw.store, "two", contents={"rootfs.tar.0000": tar_of({"b": b"2", "c": b""})}, heap=HEAP
    )
    said = thaw("diff", "one", "two")
    heap = next(line for line in said.lines if " heap " in line)
    assert heap.split()[:5] == ["1", "server", "heap", "64.0", "KiB"]
    assert "files of /: 1 added, 1 removed, 1 changed" in said.lines
    assert "  changed  b  (contents)" in said.lines
    found = thaw("diff", "one", "two", "-o", "json").json
    assert not found["equal"]
    (differing,) = (d for d in found["memory"] if d["bytes"]["different"])
    assert (differing["kind"], differing["bytes"]["equal"]) == ("heap", HEAP_SIZE // 2)
    assert [c["path"] for c in found["files"]["/"]] == ["a", "b", "c"]
    without = thaw("diff", "one", "two", "--no-memory", "-o", "json").json
    assert without["memory"] == []


def test_what_they_were_made_from() -> None:
    first = snapshots.CONFIG
    second = snapshots.config(
        args=["python3", "other.py"],
        env=["HOME", "PORT"],
        user=[1000, 1000, 6, 5],
        capabilities={"bounding": ["CAP_KILL"], "ambient": []},
        volumes=[],
    )
    assert list(facts(first, second)) == [
        Fact("origin.args", "python3 serve.py", "python3 other.py"),
        Fact("origin.capabilities.ambient", "", ""),
        Fact("origin.capabilities.bounding", "CAP_CHOWN", "-"),
        Fact("origin.capabilities.effective", "CAP_KILL", ""),
        Fact("origin.env", "TOKEN", "-"),
        Fact("origin.env", "-", "PORT"),
        Fact("origin.user", "1000 1000 5 6", "1000 1000 6 5"),
        Fact("volumes", "/dev/shm", "-"),
    ]
    assert list(facts(first, snapshots.config(created="2027-01-01T00:00:00Z"))) == []


def test_mounts_and_long_values() -> None:
    mounts = [SpecMount("/x", "bind", ["ro"])]
    second = snapshots.config(container="y" * 300)
    found = list(facts(snapshots.CONFIG, second))
    assert [len(fact.second) for fact in found] == [201]
    origin = snapshots.ORIGIN
    first = snapshots.config(mounts=[])
    assert all(fact.what == "mounts" for fact in facts(snapshots.CONFIG, first))
    assert origin.mounts != mounts


def test_folders_of_images(thaw: Thaw, tmp_path: Path) -> None:
    first = looked.images(tmp_path / "a")
    second = looked.images(tmp_path / "b", heap=HEAP)
    said = thaw("diff", str(first), str(second))
    assert "memory: 64.0 KiB differ" in said.out
    assert "files of" not in said.out


def test_one_that_is_not_there(thaw: Thaw) -> None:
    looked.snapshot(thaw.store, "one")
    said = thaw("diff", "one", "two")
    assert (said.status, said.out) == (3, "")


def test_pages_that_are_gone(thaw: Thaw) -> None:
    looked.snapshot(thaw.store, "one")
    second = looked.snapshot(thaw.store, "two", heap=HEAP)
    for path in second.pages[0].iterdir():
        path.write_bytes(b"")
    said = thaw("diff", "one", "two")
    assert (said.status, said.out) == (4, "")
