"""Pulls from a registry that does as it should."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes.artifacts import PIECE, Artifact, disk, files, left, made
from fakes.registry import Registry, Request
from fakes.settled import PATIENCE

from shim.config import Config
from shim.errors import (
    AlreadyExists,
    Cancelled,
    Damaged,
    FailedPrecondition,
    InvalidArgument,
    NoSuchSnapshot,
    RegistryFailed,
    StoreFull,
)
from shim.reference import Reference, parse
from shim.registry import pull, push
from shim.registry.gathering import Gathering
from shim.registry.progress import Progress
from shim.registry.remains import KEPT_SECONDS, discard, forget, forgotten, held
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
    registry.forget()
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
    registry.forget()
    second = there.path_of(pull(there, reference, config)) / "pages"
    # Two pieces that differ, and the damaged one; and the config, which is each snapshot's own.
    assert registry.count("GET", "/blobs/") == 4
    assert (second / "pages-1.img.0002").read_bytes() == bytes(PIECE)
    rootfs = "../rootfs.tar.0000"
    assert os.path.samefile(first / rootfs, second / rootfs)


def test_a_manifest_cannot_claim_the_blobs_of_others(
    there: Store, reference: Reference, config: Config, registry: Registry, pushed: str
) -> None:
    pull(there, reference, config)
    config_blob = json.loads(registry.manifests["1"])["config"]["digest"]
    stolen = min(registry.blobs.keys() - {config_blob})
    elsewhere = parse(f"{registry.host}/another/worker:1")
    # The same blobs in another order of fields: another manifest.
    document = json.loads(registry.manifests["1"])
    registry.put("1", json.dumps(document, sort_keys=True).encode())

    def play(request: Request) -> bool:
        if request.path.endswith(stolen):
            request.answer(404)
        return request.path.endswith(stolen)

    registry.play = play
    registry.forget()
    with pytest.raises(RegistryFailed, match=f"{stolen}.*missing"):
        pull(there, elsewhere, config)
    registry.play = lambda _: False
    id = pull(there, elsewhere, config)
    assert there.snapshot(id).digest != pushed
    # All of it was here, and is the repository's; but the config is each snapshot's own.
    assert registry.sent == document["config"]["size"]


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
            assert waiting.wait(PATIENCE)
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
        thread.join(3 * PATIENCE)
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
            over.wait(2 * PATIENCE)  # a server that says nothing for as long as it is asked
        return False

    registry.play = play
    began = time.monotonic()
    with pytest.raises(Cancelled):
        pull(there, reference, config, cancelled=cancelled)
    assert time.monotonic() - began < PATIENCE
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


@pytest.mark.parametrize(("total", "free", "good"), [(100, 6, True), (100, 5, False)])
def test_some_room_is_left_to_others(
    there: Store,
    reference: Reference,
    config: Config,
    pushed: str,
    monkeypatch: pytest.MonkeyPatch,
    total: int,
    free: int,
    good: bool,
) -> None:
    room = SimpleNamespace(f_frsize=1 << 20, f_blocks=total << 5, f_bavail=free << 5)
    monkeypatch.setattr("shim.registry.gathering.os.statvfs", lambda _: room)
    with nullcontext() if good else pytest.raises(StoreFull, match="160 MiB are left to others"):
        pull(there, reference, config)


def test_room_for_what_could_not_be_linked(
    there: Store,
    reference: Reference,
    config: Config,
    registry: Registry,
    pushed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = there.path_of(pull(there, reference, config)) / "pages"
    (first / "pages-1.img.0001").write_bytes(b"!" * PIECE)  # damaged on this disk
    document = json.loads(registry.manifests["1"])
    registry.put("1", json.dumps(document, sort_keys=True).encode())
    left = ["enough for what is linked", "nothing"]

    def room(_: object) -> SimpleNamespace:
        free = 10 << 20 if left.pop(0) != "nothing" else PIECE // 2
        return SimpleNamespace(f_frsize=1, f_blocks=20, f_bavail=free)

    monkeypatch.setattr("shim.registry.gathering.os.statvfs", room)
    with pytest.raises(StoreFull):
        pull(there, reference, config)
    assert left == []


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
    aged = time.time() - KEPT_SECONDS
    os.utime(remains / "blobs/x.partial", (aged + 60, aged + 60))
    assert forget(there.folder) == []
    os.utime(remains / "blobs/x.partial", (aged, aged))
    assert forgotten(there.folder) == [remains]
    with held(remains, lambda: None) as mine:
        assert mine
        assert forget(there.folder) == []
    assert forget(there.folder) == [remains]
    assert left(there) == []


def test_a_lock_is_of_a_file_and_ends_with_it(tmp_path: Path) -> None:
    remains = tmp_path / f".pull-{'0' * 64}"
    remains.mkdir()
    waited: list[bool] = []

    def wait() -> None:
        # On a network file system only files have locks that other nodes see.
        waited.append((remains / "lock").is_file())
        if len(waited) == 2:
            discard(remains)  # its holder is done

    with held(remains, wait) as mine:
        assert mine
        with held(remains, wait) as another:
            assert not another
    assert waited == [True, True]
    assert list(tmp_path.iterdir()) == []


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


def test_the_disk_fails(
    there: Store,
    reference: Reference,
    config: Config,
    pushed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Gathering, "run", broken)
    with pytest.raises(OSError, match="Input/output"):
        pull(there, reference, config)
    (line,) = map(json.loads, Path(config.text("audit.log")).read_text().splitlines())
    assert (line["outcome"], line["digest"]) == ("failed", pushed)
    assert "Input/output" in line["reason"]


def test_limits_hold_after_a_pull_for_a_pod(
    here: Store, there: Store, reference: Reference, config: Config, pushed: str
) -> None:
    first = pull(there, reference, config, who="pod team/one")
    long_ago = time.time() - 9 * 86400
    os.utime(there.path_of(first) / "config.json", (long_ago, long_ago))
    push(made(here, "other", seed=2), reference, config)
    limited = Config({**config.as_dict(), "retention.age": 1.0})
    second = pull(there, reference, limited)
    assert set(there.ids()) == {first, second}
    assert pull(there, reference, limited, who="pod team/one") == second
    assert there.ids() == [second]


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
