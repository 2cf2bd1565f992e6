"""Pulls from a registry that does as it should."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from fakes.artifacts import PIECE, Artifact, disk, files, left, made
from fakes.registry import Registry, Request

from shim.config import Config
from shim.errors import (
    AlreadyExists,
    Cancelled,
    Damaged,
    FailedPrecondition,
    InvalidArgument,
    NoSuchSnapshot,
    StoreFull,
)
from shim.reference import Reference, parse
from shim.registry import pull, push
from shim.registry.gathering import Gathering
from shim.registry.progress import Progress
from shim.registry.pulling import forget
from shim.snapshot.store import Store


def test_all_files_are_the_same(
    there: Store, artifact: Artifact, reference: Reference, config: Config, pushed: str
) -> None:
    id = pull(there, reference, config, name="mine")
    assert files(there.path_of(id)) == artifact.files
    assert there.names() == {reference.file_name: id, "mine": id}
    assert there.snapshot(id).digest == pushed
    assert left(there) == []


def test_zeros_become_holes(
    there: Store, reference: Reference, config: Config, pushed: str
) -> None:
    pages = there.path_of(pull(there, reference, config)) / "pages"
    sizes = [os.stat(pages / f"pages-1.img.000{n}").st_blocks * 512 for n in range(3)]
    assert sizes[0] >= PIECE
    assert sizes[1] < PIECE / 3 + 140_000
    assert sizes[2] == 0


def test_what_is_here_is_not_fetched_again(
    there: Store, reference: Reference, config: Config, registry: Registry, pushed: str
) -> None:
    id = pull(there, reference, config)
    registry.asked.clear()
    assert pull(there, reference, config, name="again") == id
    assert [path for _, path, _ in registry.asked] == ["/v2/team/worker/manifests/1"]
    by_digest = parse(f"{reference.registry}/team/worker@{pushed}")
    assert pull(there, by_digest, config) == id
    assert set(there.names()) == {reference.file_name, "again"}


@pytest.mark.parametrize("tag", ["", ":another"])
def test_a_digest_is_enough(
    there: Store, reference: Reference, config: Config, pushed: str, tag: str
) -> None:
    id = pull(there, parse(f"{reference.registry}/team/worker{tag}@{pushed}"), config)
    assert there.names() == {}
    assert there.snapshot(id).digest == pushed
    assert there.folder.joinpath("digests", pushed.removeprefix("sha256:")).read_text() == f"{id}\n"


def test_blobs_of_other_snapshots_are_linked(
    here: Store,
    there: Store,
    reference: Reference,
    config: Config,
    registry: Registry,
    pushed: str,
) -> None:
    first = there.path_of(pull(there, reference, config)) / "pages"
    push(made(here, "other", seed=2), reference, config)
    (first / "pages-1.img.0002").write_bytes(b"!" + bytes(PIECE - 1))  # damaged on this disk
    registry.asked.clear()
    second = there.path_of(pull(there, reference, config)) / "pages"
    # Two pieces that differ, and the damaged one.
    assert registry.count("GET", "/blobs/") == 3
    assert (second / "pages-1.img.0002").read_bytes() == bytes(PIECE)
    rootfs = "../rootfs.tar.0000"
    assert os.path.samefile(first / rootfs, second / rootfs)


def test_a_tag_follows_the_registry_a_name_does_not(
    here: Store, there: Store, reference: Reference, config: Config, pushed: str
) -> None:
    first = pull(there, reference, config, name="mine")
    push(made(here, "other", seed=2), reference, config)
    with pytest.raises(AlreadyExists, match="mine"):
        pull(there, reference, config, name="mine")
    assert there.names() == {reference.file_name: first, "mine": first}
    second = pull(there, reference, config, name="mine", replace=True)
    assert there.names() == {reference.file_name: second, "mine": second}


def test_an_unknown_tag(there: Store, reference: Reference, config: Config) -> None:
    with pytest.raises(NoSuchSnapshot, match="team/worker:1"):
        pull(there, reference, config)
    assert not there.folder.exists()


def test_a_local_name_is_in_no_registry(there: Store, config: Config) -> None:
    with pytest.raises(InvalidArgument, match="mine"):
        pull(there, parse("mine"), config)


def test_two_at_once(
    there: Store, reference: Reference, config: Config, registry: Registry, pushed: str
) -> None:
    waiting = threading.Event()

    class Second(Progress):
        def note(self, sentence: str) -> None:
            waiting.set()

    def play(request: Request) -> bool:
        if "/blobs/" in request.path:
            assert waiting.wait(10)
        return False

    registry.play = play
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(pull(there, reference, config, Second())))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 2
    assert found[0] == found[1]
    assert registry.count("GET", "/blobs/") == len(set(registry.blobs))
    assert there.ids() == [found[0]]
    assert left(there) == []


def test_it_can_be_cancelled(
    there: Store, reference: Reference, config: Config, registry: Registry, pushed: str
) -> None:
    cancelled = threading.Event()
    over = threading.Event()

    def play(request: Request) -> bool:
        if registry.count("GET", "/blobs/") > 2:
            cancelled.set()
            over.wait(10)  # a server that says nothing for as long as it is asked
        return False

    registry.play = play
    began = time.monotonic()
    with pytest.raises(Cancelled):
        pull(there, reference, config, cancelled=cancelled)
    assert time.monotonic() - began < 5
    over.set()
    assert there.ids() == []


def test_no_room_is_seen_before(
    there: Store, reference: Reference, config: Config, registry: Registry, pushed: str
) -> None:
    with disk(there.folder, "size=1536k"):
        with pytest.raises(StoreFull, match=str(there.folder)):
            pull(there, reference, config)
        assert registry.sent == 0
        assert left(there) == []


def test_a_disk_that_becomes_full(
    there: Store,
    reference: Reference,
    config: Config,
    pushed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Gathering, "_check_room", lambda *_: None)
    with disk(there.folder, "size=256k"):
        with pytest.raises(StoreFull, match=str(there.folder)):
            pull(there, reference, config)
        assert left(there) == []
        assert there.ids() == []


def test_a_store_that_can_only_be_read(
    there: Store, reference: Reference, config: Config, pushed: str
) -> None:
    with disk(there.folder, "ro"), pytest.raises(FailedPrecondition, match="Read-only"):
        pull(there, reference, config)


def test_old_remains_are_forgotten(
    there: Store, reference: Reference, config: Config, pushed: str
) -> None:
    pull(there, reference, config)
    remains = there.folder / f".pull-{'0' * 64}"
    (remains / "blobs").mkdir(parents=True)
    (remains / "blobs/x.partial").write_bytes(b"x")
    assert forget(there.folder) == []
    os.utime(remains, (1, 1))
    os.utime(remains / "blobs/x.partial", (1, 1))
    assert forget(there.folder) == [remains]
    assert left(there) == []


def test_it_is_in_the_audit_log(
    there: Store, reference: Reference, config: Config, pushed: str
) -> None:
    pull(there, reference, config, who="pod team/one")
    with pytest.raises(NoSuchSnapshot):
        pull(there, parse(f"{reference.registry}/team/worker:2"), config)
    lines = Path(config.text("audit.log")).read_text().splitlines()
    assert [
        line for line in lines if '"pull"' in line and pushed in line and "pod team/one" in line
    ]
    assert "NoSuchSnapshot" in lines[-1]


def test_a_damaged_remain_of_a_pull(
    there: Store, reference: Reference, config: Config, registry: Registry, pushed: str
) -> None:
    blobs = there.folder / f".pull-{pushed.removeprefix('sha256:')}/blobs/sha256"
    blobs.mkdir(parents=True)
    for folder in (blobs, blobs.parent, blobs.parent.parent, there.folder):
        folder.chmod(0o700)
    for digest, data in registry.blobs.items():
        (blobs / f"{digest.removeprefix('sha256:')}.partial").write_bytes(b"?" * (len(data) // 2))
    id = pull(there, reference, config)
    assert there.snapshot(id).digest == pushed
    assert files(there.path_of(id))["pages/pages-1.img.0002"] == bytes(PIECE)


def test_a_remain_that_others_could_write(
    there: Store, reference: Reference, config: Config, pushed: str
) -> None:
    there.folder.mkdir(mode=0o700)
    place = there.folder / f".pull-{pushed.removeprefix('sha256:')}"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(Exception, match="written to by others") as caught:
        pull(there, reference, config)
    assert not isinstance(caught.value, Damaged)
