"""`thaw inspect`: of a snapshot by its name, of a folder with images, as a table and as JSON."""

from __future__ import annotations

from pathlib import Path

from fakes import looked
from fakes.command import Thaw
from fakes.images import BASE, Images, vma
from fakes.snapshots import tar_of

FILES = {"rootfs.tar.0000": tar_of({"one": b"1", "two": b"2"})}


def test_a_table(thaw: Thaw) -> None:
    looked.snapshot(thaw.store, "one", contents=FILES)
    said = thaw("inspect", "one")
    assert (said.status, said.err) == (0, "")
    head, server, worker, dead = said.lines[:4]
    assert head.split()[:6] == ["PID", "NAME", "THREADS", "UID", "STATE", "SECCOMP"]
    assert server.split()[:6] == ["1", "server", "2", "0", "alive", "-"]
    assert worker.split()[:6] == ["7", "worker", "1", "1000", "stopped", "filter"]
    assert worker.index("worker") == server.index("server") + 2, "a child stands below its parent"
    assert dead.split()[:5] == ["9", "?", "0", "-", "zombie"]
    assert "process 1 (server), /usr/bin/server" in said.lines
    assert "  1   pipe     pipe 77 (write)" in said.lines
    assert "  0   file     /srv/log\\udcff" in said.lines, "no byte of theirs steers the terminal"
    assert any(line.split()[:4] == ["inet", "stream", "listening", "10.0.0.7:8080"]
               for line in said.lines)  # fmt: skip
    assert any(line.split()[1:3] == ["memfd", "weights"] for line in said.lines)
    assert any(line.split() == ["/data", "fuse.x", "x", "/data"] for line in said.lines)
    assert "saved of /: 2 members, 10.0 KiB" in said.lines
    assert said.lines[-1].startswith("3 processes, 1.4 MiB in the images: 896.0 KiB in 3 extents")
    assert "RANGE" not in said.out
    assert "one" not in said.out


def test_more_of_it(thaw: Thaw) -> None:
    looked.snapshot(thaw.store, "one", contents=FILES)
    maps = thaw("inspect", "one", "--maps")
    assert any(line.split()[:3] == ["7f0000000000-7f0000020000", "rw-p", "heap"]
               for line in maps.lines)  # fmt: skip
    files = thaw("inspect", "one", "--files")
    assert "  one" in files.lines


def test_json_has_all(thaw: Thaw) -> None:
    snapshot = looked.snapshot(thaw.store, "one", contents=FILES)
    found = thaw("inspect", "one", "-o", "json").json
    assert found["path"] == str(snapshot.path)
    assert [p["name"] for p in found["processes"]] == ["server", "worker", ""]
    heap = found["processes"][0]["mappings"][0]
    assert (heap["kind"], heap["bytes"]["bulk"]) == ("heap", looked.HEAP_SIZE)
    assert heap["space"] == {"kind": "private", "number": 1}
    assert found["processes"][0]["files"][1]["name"] == "pipe 77 (write)"
    assert found["shared"][0]["name"] == "weights"
    assert found["sockets"][0]["pids"] == [1, 7]
    assert [m["path"] for m in found["mounts"]] == ["/", "/data"]
    assert found["archives"][0]["members"] == ["one", "two"]
    assert (found["extents"], found["gpu"], found["notes"]) == (3, [], [])
    assert found["memory"]["zero"] == 512 << 10


def test_a_folder_of_images(thaw: Thaw, tmp_path: Path) -> None:
    folder = looked.images(tmp_path / "bare")
    said = thaw("inspect", str(folder))
    assert said.status == 0
    assert said.lines[-1] == "note: there is no index: CRIU restores all memory"
    assert thaw("inspect", str(folder), "-o", "json").json["archives"] == []


def test_parents_that_cannot_be(thaw: Thaw, tmp_path: Path) -> None:
    """Each process is shown once, though they are each other's parents."""
    made = Images(tmp_path / "bare")
    for pid, parent in ((1, 2), (2, 1), (3, 3)):
        made.process(pid, [vma(BASE, 4096)], {}, parent=parent)
    said = thaw("inspect", str(made.write()))
    assert sorted(line.split()[0] for line in said.lines[1:4]) == ["1", "2", "3"]


def test_what_is_none(thaw: Thaw, tmp_path: Path) -> None:
    for words, status in (("none", 3), ("a/b", 2), (str(tmp_path), 2), (f"{tmp_path}/x", 3)):
        said = thaw("inspect", words)
        assert (said.status, said.out) == (status, "")
        assert said.err.startswith("thaw inspect: ")


def test_a_damaged_one(thaw: Thaw) -> None:
    snapshot = looked.snapshot(thaw.store, "one")
    (snapshot.criu / "pstree.img").write_bytes(b"")
    said = thaw("inspect", "one")
    assert (said.status, said.out) == (4, "")
    assert "pstree.img" in said.err
