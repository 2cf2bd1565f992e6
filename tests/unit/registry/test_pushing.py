"""Pushes: what is sent, what is not, and how one goes on after an interruption."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest
from fakes.artifacts import PIECE, disk, made
from fakes.registry import Registry, Request, digest_of
from fakes.settled import PATIENCE

from shim.config import Config
from shim.errors import Cancelled, Damaged, InvalidArgument, RegistryFailed
from shim.reference import Reference, parse
from shim.registry import attempts, push
from shim.registry.progress import Progress
from shim.snapshot.artifact import manifest_of
from shim.snapshot.snapshot import Snapshot
from shim.snapshot.store import Store


class Told(Progress):
    """Stages with what was expected and what came."""

    def __init__(self) -> None:
        self.stages: list[list[int]] = []
        self._lock = threading.Lock()

    def begin(self, what: str, total: int) -> None:
        self.stages.append([total, 0])

    def advance(self, count: int) -> None:
        with self._lock:
            self.stages[-1][1] += count


def test_everything_is_there(
    snapshot: Snapshot, reference: Reference, config: Config, registry: Registry
) -> None:
    told = Told()
    digest = push(snapshot, reference, config, told)
    raw, manifest = manifest_of(snapshot)
    assert digest == digest_of(raw) == snapshot.digest
    assert registry.manifests == {"1": raw, digest: raw}
    assert set(registry.blobs) == {blob.digest for blob in manifest.blobs}
    assert len(told.stages) == 2  # sealed, and sent
    assert all(total == done > 0 for total, done in told.stages)


def test_what_is_there_is_not_sent(
    here: Store, snapshot: Snapshot, reference: Reference, config: Config, registry: Registry
) -> None:
    digest = push(snapshot, reference, config)
    sent = registry.count("POST")
    told = Told()
    again = parse(f"{reference.registry}/team/worker:again")
    assert push(snapshot, again, config, told) == digest
    assert registry.count("POST") == sent
    assert told.stages[0][0] == told.stages[0][1]
    push(made(here, "other", seed=2), reference, config)
    assert registry.count("POST") == sent + 2  # the two pieces that differ


def test_pieces_on_another_disk(
    here: Store, reference: Reference, config: Config, registry: Registry, tmp_path: Path
) -> None:
    with disk(tmp_path / "stripe", "size=8m"):
        snapshot = made(Store(here.folder, [tmp_path / "stripe"]))
        assert len(list(snapshot.pages[1].iterdir())) == 1
        push(snapshot, reference, config)
    assert set(registry.blobs) == {blob.digest for blob in manifest_of(snapshot)[1].blobs}


@pytest.mark.parametrize("resumable", [True, False])
@pytest.mark.parametrize("cut", [1, 2, 65536, 100_001, PIECE - 1])
def test_a_connection_that_is_cut(
    snapshot: Snapshot,
    reference: Reference,
    config: Config,
    registry: Registry,
    resumable: bool,
    cut: int,
) -> None:
    registry.receive = cut
    registry.resumable = resumable
    told = Told()
    push(snapshot, reference, config, told)
    assert set(registry.blobs) == {blob.digest for blob in manifest_of(snapshot)[1].blobs}
    assert told.stages[-1][0] == told.stages[-1][1]
    assert bool(registry.count("PATCH")) == (resumable and cut > 1)


def test_the_answer_was_lost(
    snapshot: Snapshot, reference: Reference, config: Config, registry: Registry
) -> None:
    digest = digest_of((snapshot.path / "pages/pages-1.img.0000").read_bytes())

    def play(request: Request) -> bool:
        if request.command == "PUT" and digest.removeprefix("sha256:") in request.path:
            registry.blobs[digest] = request.rfile.read(int(request.headers["Content-Length"]))
            request.hang_up()
            return True
        return False

    registry.play = play
    push(snapshot, reference, config)
    assert sum(digest[7:] in path for method, path, _ in registry.asked if method == "PUT") == 1


@pytest.mark.parametrize("status", [500, 429, 503])
def test_failures_that_do_not_end(
    snapshot: Snapshot, reference: Reference, config: Config, registry: Registry, status: int
) -> None:
    def play(request: Request) -> bool:
        if request.command == "PUT":
            request.rfile.read(int(request.headers["Content-Length"]))
            request.answer(status)
        return request.command == "PUT"

    registry.play = play
    with pytest.raises(RegistryFailed, match=str(status)):
        push(snapshot, reference, config)
    most = (len(attempts.WAITS) + 1) * len(manifest_of(snapshot)[1].blobs)
    assert registry.count("PUT") <= most
    assert registry.manifests == {}


def test_a_file_that_has_changed(
    snapshot: Snapshot, reference: Reference, config: Config, registry: Registry
) -> None:
    push(snapshot, reference, config)
    registry.blobs.clear()
    registry.manifests.clear()
    with open(snapshot.path / "pages/pages-1.img.0000", "r+b") as file:
        file.write(b"!")
    with pytest.raises(Damaged, match="no match"):
        push(snapshot, reference, config)
    os.truncate(snapshot.path / "pages/pages-1.img.0000", 5)
    with pytest.raises(Damaged, match="bytes"):
        push(snapshot, reference, config)
    assert registry.manifests == {}


def test_a_registry_that_changes_manifests(
    snapshot: Snapshot, reference: Reference, config: Config, registry: Registry
) -> None:
    def play(request: Request) -> bool:
        if request.command != "PUT" or "/manifests/" not in request.path:
            return False
        request.rfile.read(int(request.headers["Content-Length"]))
        request.answer(201, Docker_Content_Digest=digest_of(b"another"))
        return True

    registry.play = play
    with pytest.raises(RegistryFailed, match=digest_of(b"another")):
        push(snapshot, reference, config)


def test_it_can_be_cancelled(
    snapshot: Snapshot, reference: Reference, config: Config, registry: Registry
) -> None:
    cancelled, over = threading.Event(), threading.Event()

    def play(request: Request) -> bool:
        if request.command == "PUT":
            cancelled.set()
            over.wait(2 * PATIENCE)
            request.hang_up()
        return request.command == "PUT"

    registry.play = play
    began = time.monotonic()
    with pytest.raises(Cancelled):
        push(snapshot, reference, config, cancelled=cancelled)
    assert time.monotonic() - began < PATIENCE
    over.set()
    assert registry.manifests == {}


def test_failures_are_in_the_audit_log(
    snapshot: Snapshot, reference: Reference, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("shim.registry.pushing.manifest_of", broken)
    with pytest.raises(OSError, match="Input/output"):
        push(snapshot, reference, config, who="me")
    (line,) = map(json.loads, Path(config.text("audit.log")).read_text().splitlines())
    assert (line["event"], line["who"], line["outcome"]) == ("push", "me", "failed")
    assert "Input/output" in line["reason"]


def test_a_digest_is_not_chosen(
    snapshot: Snapshot, reference: Reference, config: Config, registry: Registry
) -> None:
    wanted = parse(f"{reference.registry}/team/worker@{digest_of(b'')}")
    with pytest.raises(InvalidArgument, match=digest_of(b"")):
        push(snapshot, wanted, config)
    with pytest.raises(InvalidArgument, match="mine"):
        push(snapshot, parse("mine"), config)
    assert registry.asked == []
