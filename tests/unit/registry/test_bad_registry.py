"""Registries that are damaged, lie, or want something else: a clear error each, nothing left."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.artifacts import left
from fakes.registry import Registry, Request, digest_of
from fakes.settled import PATIENCE, eventually

from shim.config import Config
from shim.errors import Damaged, RegistryFailed, ThawError, Unfit
from shim.reference import Reference, parse
from shim.registry import attempts, deadlines, pull, transport
from shim.registry.progress import Halt, Progress
from shim.snapshot.store import Store

Pull = Callable[[], str]


@pytest.fixture
def pulled(there: Store, reference: Reference, config: Config, pushed: str) -> Pull:
    return lambda: pull(there, reference, config)


def layer(registry: Registry, title: str) -> str:
    """The digest of a layer of what was pushed."""
    manifest = json.loads(registry.manifests["1"])
    return next(
        str(item["digest"])
        for item in manifest["layers"]
        if item["annotations"]["org.opencontainers.image.title"] == title
    )


def blobs_played(registry: Registry, digest: str, play: Callable[[Request, bytes], object]) -> None:
    def choose(request: Request) -> bool:
        if request.path.endswith(digest) and request.command == "GET":
            play(request, registry.blobs[digest])
            return True
        return False

    registry.play = choose


def manifest_changed(registry: Registry, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(registry.manifests["1"])
    change(document)
    registry.put("1", json.dumps(document).encode())


TITLE = "pages/pages-1.img.0000"


@pytest.mark.parametrize("title", [TITLE, "skeleton.tar", "rootfs.tar.0000", "volumes/0.tar.0000"])
@pytest.mark.parametrize("place", [0, -1])
def test_other_bytes(
    registry: Registry, pulled: Pull, there: Store, title: str, place: int
) -> None:
    digest = layer(registry, title)
    data = bytearray(registry.blobs[digest])
    data[place] ^= 1
    registry.blobs[digest] = bytes(data)
    with pytest.raises(Damaged, match=digest):
        pulled()
    (remains,) = (there.folder / name for name in left(there))
    assert not list(remains.rglob(f"{digest[7:]}*"))
    assert there.ids() == []


def test_another_config(registry: Registry, pulled: Pull) -> None:
    digest = json.loads(registry.manifests["1"])["config"]["digest"]
    registry.blobs[digest] = registry.blobs[digest].replace(b"node-1", b"node-2")
    with pytest.raises(Damaged, match=digest):
        pulled()
    assert registry.count("GET", "/blobs/") == 1


def test_a_config_of_a_newer_version(registry: Registry, pulled: Pull) -> None:
    config = json.dumps({"format": 99}).encode()
    registry.blobs[digest_of(config)] = config
    changed = {"digest": digest_of(config), "size": len(config)}
    manifest_changed(registry, lambda document: document["config"].update(changed))
    with pytest.raises(Unfit, match="99"):
        pulled()
    assert registry.count("GET", "/blobs/") == 1


def test_every_byte_of_the_manifest_counts(
    registry: Registry,
    pulled: Pull,
    reference: Reference,
    there: Store,
    config: Config,
    pushed: str,
) -> None:
    whole = registry.manifests[pushed]
    registry.manifests[pushed] = whole.replace(b"2", b"3", 1)
    with pytest.raises(Damaged, match=pushed):
        pull(there, parse(f"{reference.registry}/team/worker@{pushed}"), config)
    assert not there.folder.exists()


def test_a_header_with_another_digest(registry: Registry, pulled: Pull) -> None:
    def play(request: Request) -> bool:
        request.answer(200, b"{}", Docker_Content_Digest=digest_of(b"[]"))
        return True

    registry.play = play
    with pytest.raises(Damaged, match=digest_of(b"[]")):
        pulled()


@pytest.mark.parametrize(
    "title",
    [
        *("../../evil", "/etc/evil", "pages/../evil", "pages/", "pages/.", "", ".", "a\0b"),
        *("config.json", "index.json", "blobs/sha256/x", "used", "rootfs.tar.0000/x", "criu/x"),
        *("pages/pages-1.img.0000\n", "PAGES/pages-1.img.0000", "pages//pages-1.img.0000"),
    ],
)
def test_titles_that_lead_elsewhere(
    registry: Registry, pulled: Pull, there: Store, title: str
) -> None:
    def change(document: dict[str, Any]) -> None:
        for item in document["layers"]:
            if item["annotations"]["org.opencontainers.image.title"] == TITLE:
                item["annotations"]["org.opencontainers.image.title"] = title

    manifest_changed(registry, change)
    with pytest.raises(Unfit):
        pulled()
    assert registry.count("GET", "/blobs/") == 0
    assert not there.folder.exists()


@pytest.mark.parametrize("field", ["digest", "size"])
@pytest.mark.parametrize("value", ["sha256:../../x", "sha512:00", "", -1, 1 << 62, None, [], 0.5])
def test_descriptors_that_are_none(
    registry: Registry, pulled: Pull, field: str, value: object
) -> None:
    manifest_changed(registry, lambda document: document["layers"][1].update({field: value}))
    with pytest.raises(Unfit):
        pulled()
    assert registry.count("GET", "/blobs/") == 0


@pytest.mark.parametrize(
    "manifest", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"mediaType": "x"}', b"null"]
)
def test_manifests_that_are_none(registry: Registry, pulled: Pull, manifest: bytes) -> None:
    registry.put("1", manifest)
    with pytest.raises(Unfit):
        pulled()


def test_an_endless_manifest(registry: Registry, pulled: Pull) -> None:
    def play(request: Request) -> bool:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        while True:  # until the other side has enough
            request.wfile.write(b"10000\r\n" + b" " * 65536 + b"\r\n")

    registry.play = play
    with pytest.raises(RegistryFailed, match="more than 4194304 bytes"):
        pulled()


def test_a_missing_blob(registry: Registry, pulled: Pull) -> None:
    digest = layer(registry, TITLE)
    del registry.blobs[digest]
    with pytest.raises(RegistryFailed, match=f"{digest}.*missing"):
        pulled()


@pytest.mark.parametrize("more", [-1, 1, 1000])
def test_another_length(registry: Registry, pulled: Pull, more: int) -> None:
    def play(request: Request, data: bytes) -> None:
        request.answer(200, data, Content_Length=str(len(data) + more))
        request.hang_up()

    blobs_played(registry, layer(registry, TITLE), play)
    with pytest.raises(RegistryFailed, match="bytes"):
        pulled()


def test_more_than_was_said(registry: Registry, pulled: Pull) -> None:
    def play(request: Request, data: bytes) -> None:
        request.send_response(200)
        request.send_header("Connection", "close")
        request.end_headers()
        for _ in range(3):
            request.wfile.write(data)
        request.hang_up()

    blobs_played(registry, layer(registry, TITLE), play)
    with pytest.raises(RegistryFailed, match="more than"):
        pulled()


def test_less_than_was_said_each_time(registry: Registry, pulled: Pull) -> None:
    def play(request: Request, data: bytes) -> None:
        request.answer(200, data[:100], Content_Length=str(len(data)))
        request.hang_up()

    blobs_played(registry, layer(registry, TITLE), play)
    with pytest.raises(RegistryFailed, match="100 bytes"):
        pulled()


def test_another_range(registry: Registry, pulled: Pull) -> None:
    digest = layer(registry, TITLE)
    registry.cut = 50_000

    def play(request: Request) -> bool:
        if request.headers.get("Range") and request.path.endswith(digest):
            request.answer(206, b"x", Content_Range="bytes 7-7/8")
            return True
        return False

    registry.play = play
    with pytest.raises(RegistryFailed, match="not the range"):
        pulled()


def test_ranges_are_ignored(registry: Registry, pulled: Pull, there: Store, pushed: str) -> None:
    registry.ranges = False
    cut: list[str] = []

    def play(request: Request) -> bool:
        registry.cut = 0 if request.path in cut else 50_000
        cut.append(request.path)
        return False

    registry.play = play
    assert there.snapshot(pulled()).digest == pushed


@pytest.mark.parametrize("status", [403, 404, 418, 204])
def test_a_status_for_everything(registry: Registry, pulled: Pull, status: int) -> None:
    def play(request: Request) -> bool:
        request.answer(status, b'{"errors":[{"message":"\x1b[31mno"}]}' if status > 204 else b"")
        return True

    registry.play = play
    with pytest.raises(ThawError) as caught:
        pulled()
    assert "\x1b" not in str(caught.value)
    assert registry.count("GET") == 1


def test_failures_that_end(
    registry: Registry, pulled: Pull, there: Store, pushed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(Halt, "sleep", lambda _, seconds: waited.append(seconds))
    answers = {1: (429, "7"), 2: (503, "Fri, 31 Dec 1999 23:59:59 GMT")}

    def play(request: Request) -> bool:
        if answer := answers.get(registry.count("GET")):
            request.answer(answer[0], Retry_After=answer[1])
        return answer is not None

    registry.play = play
    assert there.snapshot(pulled()).digest == pushed
    assert waited == [7.0, attempts.WAITS[1]]


def test_failures_that_do_not_end(registry: Registry, pulled: Pull) -> None:
    def play(request: Request) -> bool:
        request.answer(500)
        return True

    registry.play = play
    with pytest.raises(RegistryFailed, match="500"):
        pulled()
    assert registry.count("GET") == len(attempts.WAITS) + 1


def test_nobody_has_ever_answered(
    registry: Registry, pulled: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod may be waiting: it is given up earlier than one that is only busy."""
    monkeypatch.setattr(attempts, "WAITS", (0.0,) * 7)
    waited: list[float] = []
    monkeypatch.setattr(Halt, "sleep", lambda _, seconds: waited.append(seconds))
    registry.server.socket.close()
    with pytest.raises(RegistryFailed, match="is that its address"):
        pulled()
    assert len(waited) == 4


def test_nobody_is_there(registry: Registry, pulled: Pull, reference: Reference) -> None:
    registry.server.socket.close()
    with pytest.raises(RegistryFailed, match=reference.registry):
        pulled()


def test_it_says_nothing(registry: Registry, pulled: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "READ_SECONDS", 0.05)

    over = threading.Event()

    def play(request: Request) -> bool:
        over.wait(PATIENCE)
        request.hang_up()
        return True

    registry.play = play
    with pytest.raises(RegistryFailed, match="timed out"):
        pulled()
    over.set()


def test_it_stalls_in_the_middle(
    registry: Registry,
    there: Store,
    reference: Reference,
    config: Config,
    pushed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patience = transport.READ_SECONDS
    digest = layer(registry, TITLE)
    over = threading.Event()
    to_come: list[int] = []

    class Reader(Progress):
        """Impatient only when all is here that will come: an answer that is late is no stall."""

        def advance(self, count: int) -> None:
            if to_come:
                to_come[0] -= count
                if to_come[0] == 0:
                    monkeypatch.setattr(transport, "READ_SECONDS", 0.05)

    def calm(*_: object) -> None:
        monkeypatch.setattr(transport, "READ_SECONDS", patience)

    monkeypatch.setattr(Halt, "sleep", calm)  # before the next attempt

    def play(request: Request) -> bool:
        if not request.path.endswith(digest) or request.headers.get("Range"):
            return False
        data = registry.blobs[digest]
        to_come.append(100_000)
        request.answer(200, data[:100_000], Content_Length=str(len(data)))
        over.wait(PATIENCE)
        request.hang_up()
        return True

    registry.play = play
    one = Config({**config.as_dict(), "registry.transfers": 1})
    assert there.snapshot(pull(there, reference, one, Reader())).digest == pushed
    over.set()
    ranges = [headers.get("Range") for _, path, headers in registry.asked if path.endswith(digest)]
    assert ranges == [None, "bytes=100000-"]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short deadlines; a byte comes more often than that."""
    for name in ("READ_SECONDS", "SMALL_SECONDS", "_WORDS_SECONDS"):
        monkeypatch.setattr(transport, name, 0.15)


class Clock:
    """The deadlines' own: it stands still unless it is moved, and they look at it often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now = 1.0
        self._looks = looks = [0]

        class Often(threading.Condition):
            def wait(self, timeout: float | None = None) -> bool:
                looks[0] += 1
                return super().wait(0.005)

        threads = SimpleNamespace(Condition=Often, Thread=threading.Thread)
        monkeypatch.setattr(deadlines, "threading", threads)
        monkeypatch.setattr(deadlines, "time", SimpleNamespace(monotonic=lambda: self._now))

    def move(self, seconds: float) -> None:
        """Returns when what takes too long by that has been ended."""
        self._now += seconds
        looks = self._looks[0]
        eventually(lambda: self._looks[0] > looks + 1)


def trickled(request: Request, data: bytes) -> None:
    """Write `data` again and again until nobody listens."""
    ends = time.monotonic() + 2 * PATIENCE
    while time.monotonic() < ends:
        for place in range(len(data)):
            request.wfile.write(data[place : place + 1])
            time.sleep(0.02)
    request.hang_up()


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("first", "ever"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (HEAD, b"x: y"),
        (HEAD, b"X-A: y\r\n"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"Trailer: x\r\n"),
        (HEAD + b"Content-Length: 4000\r\n\r\n", b" "),
        (HEAD + b"\r\n", b" "),
        (b"HTTP/1.1 403 No\r\nContent-Length: 2000\r\n\r\n", b"{"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 2000\r\n\r\n", b"{"),
        (b"HTTP/1.1 401 No\r\nContent-Length: 2000\r\n\r\n", b"{"),
    ],
)
def test_an_answer_that_trickles(
    registry: Registry, pulled: Pull, hurried: None, first: bytes, ever: bytes
) -> None:
    def play(request: Request) -> bool:
        request.wfile.write(first)
        trickled(request, ever)
        return True

    registry.play = play
    began = time.monotonic()
    with pytest.raises(RegistryFailed):
        pulled()
    assert time.monotonic() - began < 2 * PATIENCE, "it was not waited for the answer's end"


def test_nothing_but_informational_answers(registry: Registry, pulled: Pull) -> None:
    def play(request: Request) -> bool:
        while True:  # until the other side has enough
            request.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    registry.play = play
    with pytest.raises(RegistryFailed, match="that there will be one"):
        pulled()


def test_some_informational_answers(
    registry: Registry, pulled: Pull, there: Store, pushed: str
) -> None:
    def play(request: Request) -> bool:
        request.wfile.write(b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n" * 3)
        return False

    registry.play = play
    assert there.snapshot(pulled()).digest == pushed


def test_a_blob_may_take_its_time(
    registry: Registry,
    there: Store,
    reference: Reference,
    config: Config,
    pushed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    here: list[int] = []

    class Reader(Progress):
        def advance(self, count: int) -> None:
            here.append(count)

    def play(request: Request, data: bytes) -> None:
        others, part = sum(here), len(data) // 8
        request.answer(200, data[:0], Content_Length=str(len(data)))
        for place in range(0, len(data), part):
            if place:
                clock.move(transport.READ_SECONDS / 4)
            request.wfile.write(data[place : place + part])
            come = others + min(place + part, len(data))
            eventually(lambda come=come: sum(here) == come)  # type: ignore[misc]

    blobs_played(registry, layer(registry, TITLE), play)
    one = Config({**config.as_dict(), "registry.transfers": 1})
    assert there.snapshot(pull(there, reference, one, Reader())).digest == pushed
    assert registry.count("GET", layer(registry, TITLE)) == 1


def test_the_trailers_of_a_blob_that_do_not_end(
    registry: Registry, pulled: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(request: Request, data: bytes) -> None:
        # Not before: what is late then has another end than this.
        monkeypatch.setattr(transport, "READ_SECONDS", 0.15)
        request.wfile.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n")
        trickled(request, b"X: y\r\n")

    blobs_played(registry, layer(registry, TITLE), play)
    with pytest.raises(RegistryFailed, match="timed out"):
        pulled()
