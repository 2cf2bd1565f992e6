"""Nothing enters or leaves a namespace that is held; what was there before is there afterwards."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from fakes.namespaces import Namespace, Network
from fakes.settled import PATIENCE, eventually

from oci_hooks import hold as module
from oci_hooks.hold import hold, is_held, release, unlock
from oci_hooks.nftables import INET, INPUT, Batch, tables
from shim.errors import InvalidArgument, Unavailable
from shim.namespaces import inside

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")

PORT = 8000
OUTSIDE = "10.99.1.1"
SHORT = 0.15  # seconds in which a packet would have come


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        pod = made.pod(1)
        ends = time.monotonic() + PATIENCE
        with bound(pod, "::", socket.SOCK_STREAM):
            while is_cut_off(made.outside, pod.address6):
                assert time.monotonic() < ends
                # Fresh links lose what comes first, and the kernel asks again after a second.
                made.outside.ip("neigh", "flush", "dev", "pod1")
        yield made


@pytest.fixture
def pod(network: Network) -> Iterator[Namespace]:
    made = network.pods[1]
    yield made
    release(made.path)
    assert not is_held(made.path)


@pytest.fixture
def outside(network: Network) -> Namespace:
    return network.outside


def bound(where: Namespace, address: str, kind: socket.SocketKind) -> socket.socket:
    def make() -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = socket.socket(family, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, PORT))
        if kind == socket.SOCK_STREAM:
            made.listen()
        return made

    return where.within(make)


def connects(where: Namespace, address: str, seconds: float = PATIENCE) -> bool:
    def connect() -> None:
        socket.create_connection((address, PORT), seconds).close()

    return reached(lambda: where.within(connect))


def is_cut_off(where: Namespace, address: str) -> bool:
    return not connects(where, address, SHORT)


def receives(
    sender: Namespace, address: str, receiver: socket.socket, seconds: float = PATIENCE
) -> bool:
    def send() -> None:
        with socket.socket(receiver.family, socket.SOCK_DGRAM) as made:
            made.sendto(b"x", (address, PORT))

    receiver.settimeout(seconds)
    sender.within(send)
    return reached(lambda: receiver.recv(9))


def misses(sender: Namespace, address: str, receiver: socket.socket) -> bool:
    return not receives(sender, address, receiver, SHORT)


def reached(call: Callable[[], object]) -> bool:
    try:
        call()
    except TimeoutError:
        return False
    return True


def test_nothing_comes_in(pod: Namespace, outside: Namespace) -> None:
    with (
        bound(pod, "::", socket.SOCK_STREAM),
        bound(pod, "0.0.0.0", socket.SOCK_DGRAM) as four,
        bound(pod, pod.address6, socket.SOCK_DGRAM) as six,
    ):
        assert hold(pod.path) == "egress"
        assert is_held(pod.path)
        assert is_cut_off(outside, pod.address4)
        assert is_cut_off(outside, pod.address6)
        assert misses(outside, pod.address4, four)
        assert misses(outside, pod.address6, six)
        assert connects(pod, "127.0.0.1"), "its own may talk to each other"
        assert connects(pod, "::1")
        assert connects(pod, pod.address4)
        assert receives(pod, pod.address4, four)
        release(pod.path)
        assert connects(outside, pod.address4)
        assert connects(outside, pod.address6)
        assert receives(outside, pod.address4, four)
        assert receives(outside, pod.address6, six)


def test_nothing_goes_out(pod: Namespace, outside: Namespace) -> None:
    with (
        bound(outside, OUTSIDE, socket.SOCK_STREAM),
        bound(outside, "fd99:1::1", socket.SOCK_DGRAM) as six,
        bound(outside, OUTSIDE, socket.SOCK_DGRAM) as four,
    ):
        hold(pod.path)
        assert is_cut_off(pod, OUTSIDE)
        assert misses(pod, OUTSIDE, four), "lost without an error"
        assert misses(pod, "fd99:1::1", six)
        release(pod.path)
        assert connects(pod, OUTSIDE)
        assert receives(pod, OUTSIDE, four)
        assert receives(pod, "fd99:1::1", six)


def test_raw_packets_neither(pod: Namespace, outside: Namespace) -> None:
    frame = bytes.fromhex("ffffffffffff 020000000001 0800") + b"x" * 60

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as made:
            made.bind(("eth0", 0))
            made.send(frame)

    def listen() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        made.bind(("pod1", 0x0800))
        made.settimeout(SHORT)
        return made

    with outside.within(listen) as heard:
        hold(pod.path)
        with pytest.raises(OSError, match="No buffer space"):  # the only ones that are told
            pod.within(send)
        assert not reached(lambda: heard.recv(99))
        release(pod.path)
        heard.settimeout(PATIENCE)
        pod.within(send)
        assert heard.recv(99) == frame


def test_neighbours_are_answered(pod: Namespace, outside: Namespace) -> None:
    """Otherwise the first packet after the release would wait for a second."""
    outside.ip("neigh", "flush", "dev", "pod1")
    hold(pod.path)
    with bound(pod, "::", socket.SOCK_STREAM):
        for address in (pod.address4, pod.address6):
            assert is_cut_off(outside, address)
            eventually(lambda at=address: "lladdr" in outside.ip("neigh", "show", at))  # type: ignore[misc]


def test_a_canary_from_outside(pod: Namespace, outside: Namespace) -> None:
    with bound(pod, "::", socket.SOCK_STREAM):
        hold(pod.path, ["10.99.1.1", "fd99:1::1"])
        assert connects(outside, pod.address4)
        assert connects(outside, pod.address6)
        hold(pod.path, ["10.99.1.7"])
        assert is_cut_off(outside, pod.address4)
        assert is_cut_off(outside, pod.address6)


def test_behind_an_old_kernel(
    pod: Namespace, outside: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses a hook that it does not know, and with it the whole transaction."""
    monkeypatch.setattr(module, "EGRESS", 9)
    with bound(pod, "::", socket.SOCK_STREAM), bound(outside, OUTSIDE, socket.SOCK_DGRAM) as four:
        assert hold(pod.path) == "output"
        assert is_cut_off(outside, pod.address4)
        assert connects(pod, "::1")
        with pytest.raises(PermissionError):
            receives(pod, OUTSIDE, four)
        release(pod.path)
        assert connects(outside, pod.address4)


def test_again_and_again(pod: Namespace) -> None:
    release(pod.path)
    assert not is_held(pod.path)
    for _ in range(2):
        hold(pod.path)
        assert is_held(pod.path)
    release(pod.path)
    release(pod.path)
    assert not is_held(pod.path)


def test_what_a_failed_criu_leaves_is_removed(pod: Namespace, outside: Namespace) -> None:
    lock, other = "CRIU-65fd0558-23ef-4d23-81", "of-the-node"

    def leave() -> None:
        batch = Batch()
        for name in (lock, other):
            batch.table(INET, name)
        batch.chain(INET, lock, "input", hook=INPUT, priority=0)
        batch.commit(5)

    def left() -> list[str]:
        return tables(INET, 5)

    inside(pod.path, "net", leave)
    hold(pod.path)
    with bound(pod, "0.0.0.0", socket.SOCK_STREAM):
        release(pod.path)
        assert is_cut_off(outside, pod.address4)
        unlock(pod.path)
        assert connects(outside, pod.address4)
        unlock(pod.path)
    assert inside(pod.path, "net", left) == [other]
    batch = Batch()
    batch.without_table(INET, other)
    inside(pod.path, "net", lambda: batch.commit(5))


def test_what_is_no_namespace(pod: Namespace, tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        hold(f"{tmp_path}/none")
    with pytest.raises(OSError, match="setns"):
        release("/etc/passwd")
    with pytest.raises(InvalidArgument, match=r"'10\.0\.0' is no address"):
        hold(pod.path, ["10.0.0"])
    assert not is_held(pod.path)


@pytest.mark.parametrize(
    ("error", "said"),
    [(OSError(errno.EPROTONOSUPPORT, "no such protocol"), "no such"), (TimeoutError(), "answer")],
)
def test_without_nftables(
    pod: Namespace, error: OSError, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Batch, "commit", commit)
        with pytest.raises(Unavailable, match=said):
            hold(pod.path)


def test_a_namespace_without_links(pod: Namespace) -> None:
    held = subprocess.Popen(["unshare", "--net", "sleep", "60"])
    try:
        own = os.stat("/proc/self/ns/net").st_ino
        eventually(lambda: os.stat(f"/proc/{held.pid}/ns/net").st_ino != own)
        assert hold(f"/proc/{held.pid}/ns/net") == "output"
    finally:
        held.kill()
        held.wait()
