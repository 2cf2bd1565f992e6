"""Sockets move to the new pod's addresses: what CRIU dumped in one namespace comes back in another.

The same CRIU options as Thaw's, without runc and containerd.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from bench.bare import CACHED, end
from fakes import peer
from fakes.inet_images import entry, image, states
from fakes.namespaces import Namespace, Network
from fakes.settled import PATIENCE

from shim.errors import Damaged, Unfit
from shim.restore import namespace
from shim.restore.addresses import bound, counterparts, for_pod, rewritten

needs_criu = pytest.mark.skipif(
    os.geteuid() != 0 or not CACHED.exists(), reason="needs root and the CRIU of tests/run.sh"
)
HANG_UP = 0x10


def criu(verb: str, *options: str, fds: tuple[int, ...] = ()) -> None:
    argv = [str(CACHED), verb, "-v4", "--tcp-established", "--network-lock", "nftables", *options]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        pass_fds=fds, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, Path(options[1], f"{verb}.log").read_text()[-3000:]


class Moved:
    """A worker that was dumped in one pod and can be restored in others."""

    def __init__(self, folder: Path, network: Network, stack: ExitStack) -> None:
        self.network = network
        self.images = folder / "images"
        self.images.mkdir()
        self.old = network.pod(1)
        self.servers = [stack.enter_context(self._server(f)) for f in ("10.99.1.1", "fd99:1::1")]
        self.pid = self._start(folder / "ready")
        self.accepted = [stack.enter_context(s.accept()[0]) for s in self.servers]
        self.before = namespace.addresses(self.old.path)
        self.key = f"net[{os.stat(self.old.path).st_ino}]:pod"
        at = ("--images-dir", str(self.images), "--log-file", "dump.log")
        criu("dump", *at, "--tree", str(self.pid), "--external", self.key)
        end([self.pid])
        self.files = (self.images / "files.img").read_bytes()

    def _server(self, address: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return self.network.outside.within(lambda: peer.listening(family, address, peer.SERVER))

    def _start(self, ready: Path) -> int:
        arguments = [self.old.address4, self.old.address6, "10.99.1.1", "fd99:1::1", str(ready)]
        argv = ["nsenter", f"--net={self.old.path}"]
        worker = subprocess.Popen(
            [*argv, sys.executable, "-IS", peer.__file__, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "GLIBC_TUNABLES": "glibc.pthread.rseq=0"},
        )
        ends = time.monotonic() + PATIENCE
        while not ready.exists():
            assert worker.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.005)
        worker.returncode = 0  # CRIU ends it, and end() reaps it
        return worker.pid

    def restore(self, folder: Path, pod: Namespace, files: bytes) -> None:
        """Restore it from images of which files.img is another, in a pod."""
        for path in self.images.iterdir():
            (folder / path.name).symlink_to(path)
        (folder / "files.img").unlink()
        (folder / "files.img").write_bytes(files)
        fd = os.open(pod.path, os.O_RDONLY)
        try:
            criu(
                "restore", "--images-dir", str(folder), "--log-file", "restore.log",
                "--restore-detached", "--restore-sibling", "--inherit-fd", f"fd[{fd}]:pod",
                fds=(fd,),
            )  # fmt: skip
        finally:
            os.close(fd)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moved]:
    with Network() as network, ExitStack() as stack:
        made = Moved(tmp_path_factory.mktemp("moved"), network, stack)
        yield made
        end([made.pid])


def ask(pod: Namespace, address: str, outside: Namespace) -> dict[str, Any]:
    def call() -> bytes:
        with socket.create_connection((address, peer.CONTROL), PATIENCE) as asked:
            return asked.makefile("rb").read()

    found: dict[str, Any] = json.loads(outside.within(call))
    return found


@needs_criu
def test_every_kind_of_socket_in_another_pod(worker: Moved, tmp_path: Path) -> None:
    new, out = worker.network.pod(2), worker.network.outside
    done = rewritten(worker.files, counterparts(worker.before, namespace.addresses(new.path)))
    assert (done.moved, done.kept, done.closed) == (13, 10, 2)
    try:
        worker.restore(tmp_path, new, done.data)
        told = ask(new, new.address4, out)
        # Each listener answers from outside, by the address that it was bound to.
        for address, port in (
            (new.address4, peer.LISTEN4),
            (new.address6, peer.LISTEN6),
            (new.address4, peer.MAPPED),
            (new.address4, peer.WILDCARD),
        ):
            out.within(lambda a=address, p=port: socket.create_connection((a, p), PATIENCE)).close()  # type: ignore[misc]
    finally:
        end([worker.pid])
    assert {name: told[name][0] for name in ("listen4", "listen6", "mapped", "loopback")} == {
        "listen4": [new.address4, peer.LISTEN4],
        "listen6": [new.address6, peer.LISTEN6],
        "mapped": [f"::ffff:{new.address4}", peer.MAPPED],
        "loopback": ["127.0.0.1", peer.LOOPBACK],
    }
    assert told["wildcard"][0] == ["0.0.0.0", peer.WILDCARD]
    assert told["datagram4"][0] == [new.address4, peer.DATAGRAM4]
    assert told["datagram6"][0] == [new.address6, peer.DATAGRAM6]
    assert told["names4"][0][0] == new.address4, "a client of UDP has a new address"
    assert told["names4"][1] == ["10.99.1.1", peer.NAMES], "and the same peer"
    assert (told["names6"][0][0], told["names6"][1][0]) == (new.address6, "fd99:1::1")
    for name in ("server4", "server6"):
        _, nobody, received, sent, polled = told[name]
        assert (nobody, received, sent) == ("OSError", "", "BrokenPipeError"), "end of file at once"
        assert polled & HANG_UP
    for name, address in (
        ("inside", "127.0.0.1"),
        ("own", new.address4),
        ("own-mapped", f"::ffff:{new.address4}"),
        ("own6", new.address6),
    ):
        client, server = told[name], told[f"{name}-peer"]
        assert client[0][0] == server[0][0] == address
        assert (client[0], client[1]) == (server[1], server[0])
        assert server[2] == "unreadmore", "what was on its way, and what was sent since"
    assert told["half"][3] == "BrokenPipeError", "it has said that it sends no more"
    assert told["half-peer"][2:4] == ["unread", 4], "and still may be answered"


@needs_criu
def test_without_it_nothing_comes_back(worker: Moved, tmp_path: Path) -> None:
    new = worker.network.pod(3)
    with pytest.raises(AssertionError, match="Can't bind inet socket"):
        worker.restore(tmp_path, new, worker.files)
    end([worker.pid])


@needs_criu
def test_back_in_the_same_pod(worker: Moved) -> None:
    """Only what cannot live on is touched, and that once."""
    same = counterparts(worker.before, worker.before)
    done = rewritten(worker.files, same)
    assert (done.moved, done.kept, done.closed) == (0, 10, 2)
    assert rewritten(done.data, same).data == done.data
    assert {ip_address(line.split()[1]) for line in worker.before} >= set(bound(worker.files))


@needs_criu
def test_a_pod_of_one_family(worker: Moved) -> None:
    with pytest.raises(Unfit, match=r"bound to \[fd99:1::2\]:800\d, which has no counterpart"):
        rewritten(worker.files, counterparts(worker.before, ["eth0 10.0.0.1"]))


# By hand: what a worker of a few lines does not do.

OLD = {ip_address("10.0.0.5"): ip_address("10.0.0.6")}


@pytest.mark.parametrize(
    "source", ["0.0.0.0 80", "127.0.0.9 80", ":: 80", "::1 80", "::ffff:127.0.0.1 80",
               "224.0.0.251 5353", "ff02::fb 5353", "255.255.255.255 67", "10.0.0.5 0"],
)  # fmt: skip
def test_the_same_in_every_pod(source: str) -> None:
    before = image(entry(1, source, protocol=17, state=7))
    assert rewritten(before, OLD).data == before


@pytest.mark.parametrize(
    ("ends", "kept"),
    [
        ([("127.0.0.1 9", "127.0.0.1 8"), ("127.0.0.1 8", "127.0.0.1 9")], 2),
        ([("::1 9", "::1 8"), ("::1 8", "::1 9")], 2),
        # One end is an IPv4 socket, the other an IPv6 socket that took it.
        ([("127.0.0.1 9", "127.0.0.1 8"), ("::ffff:127.0.0.1 8", "::ffff:127.0.0.1 9")], 2),
        ([("127.0.0.1 9", "127.0.0.1 9")], 1),  # to itself
        ([("127.0.0.1 9", "10.0.0.5 8"), ("10.0.0.5 8", "127.0.0.1 9")], 2),
        # The peer is in another container of the pod, outside, or on an address that is gone.
        ([("127.0.0.1 9", "127.0.0.1 8")], 0),
        ([("10.0.0.5 9", "10.0.0.9 8")], 0),
        ([("127.0.0.1 9", "10.0.0.7 8"), ("10.0.0.7 8", "127.0.0.1 9")], 0),
        ([("fe80::5 9", "fe80::5 8"), ("fe80::5 8", "fe80::5 9")], 0),
    ],
)
def test_which_connections_are_kept(ends: list[tuple[str, str]], kept: int) -> None:
    link = {ip_address("fe80::5"): ip_address("fe80::6")}
    done = rewritten(image(*(entry(n, *end) for n, end in enumerate(ends))), {**OLD, **link})
    assert (done.kept, done.closed) == (kept, len(ends) - kept)
    assert [state for *_, state in states(done.data)] == [1 if kept else 7] * len(ends)


def test_a_connection_under_way_is_closed() -> None:
    pair = entry(1, "127.0.0.1 9", "127.0.0.1 8", state=2), entry(2, "127.0.0.1 8", "127.0.0.1 9")
    assert states(rewritten(image(*pair), OLD).data) == [("0.0.0.0", 0, 7)] * 2


def test_datagrams_to_a_family_that_is_gone() -> None:
    old = {ip_address("fd00::5"): None}
    before = image(entry(1, "fd00::5 999", "fd00::9 53", protocol=17))
    assert states(rewritten(before, old).data) == [("::", 0, 7)]


def test_what_was_not_recorded() -> None:
    before = image(entry(1, "10.0.0.8 80", state=10))
    with pytest.raises(Unfit, match=r"bound to 10\.0\.0\.8:80"):
        rewritten(before, OLD)
    assert rewritten(before, OLD, [ip_address("10.0.0.8")]).data == before


@pytest.mark.parametrize(
    ("old", "new", "pairs"),
    [
        (["eth0 10.0.0.5", "eth0 fd00::5", "eth0 fe80::5"],
         ["eth0 fe80::6", "eth0 10.0.0.6", "eth0 fd00::6"],
         {"10.0.0.5": "10.0.0.6", "fd00::5": "fd00::6", "fe80::5": "fe80::6"}),
        # Interfaces by their names first, whatever their order.
        (["eth0 10.0.0.5", "net1 10.1.0.5"], ["net1 10.1.0.6", "eth0 10.0.0.6"],
         {"10.0.0.5": "10.0.0.6", "10.1.0.5": "10.1.0.6"}),
        (["eth0 10.0.0.5", "net1 10.1.0.5"], ["ens3 10.0.0.6", "net1 10.1.0.6"],
         {"10.0.0.5": "10.0.0.6", "10.1.0.5": "10.1.0.6"}),
        (["eth0 10.0.0.5", "eth0 10.0.0.7"], ["eth0 10.0.0.6"],
         {"10.0.0.5": "10.0.0.6", "10.0.0.7": "None"}),
        (["eth0 fd00::5"], ["eth0 fe80::6", "eth0 10.0.0.6"], {"fd00::5": "None"}),
    ],
)  # fmt: skip
def test_counterparts(old: list[str], new: list[str], pairs: dict[str, str]) -> None:
    assert {str(a): str(b) for a, b in counterparts(old, new).items()} == pairs


@pytest.mark.parametrize("old", [["eth0 10.0.0.5"], None])
def test_a_folder_of_images(tmp_path: Path, old: list[str] | None) -> None:
    listener, other = entry(1, "10.0.0.5 80", state=10), entry(2, "0.0.0.0 81", state=10)
    (tmp_path / "files.img").write_bytes(image(listener, other))
    done = for_pod(tmp_path, old, ["lo 10.7.7.7", "eth0 10.0.0.6"])
    assert states(done.data) == [("10.0.0.6", 80, 10), ("0.0.0.0", 81, 10)]
    # Its own address again, by chance or in the same pod.
    assert for_pod(tmp_path, [], ["eth0 10.0.0.5"]).moved == 0


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match=r"cannot read files\.img: No such file"):
        for_pod(tmp_path, [], [])
    (tmp_path / "files.img").symlink_to("/etc/passwd")
    with pytest.raises(Damaged, match=r"files\.img"):
        for_pod(tmp_path, [], [])


def test_no_address() -> None:
    with pytest.raises(Unfit, match="'eth0 10' is no address"):
        counterparts(["eth0 10"], [])


def test_addresses_that_are_there_already(tmp_path: Path) -> None:
    """Of a snapshot that does not say which the old ones were: it may come back where it was."""
    (tmp_path / "files.img").write_bytes(image(entry(1, "10.0.0.2 80", state=10)))
    made = for_pod(tmp_path, None, ["eth0 10.0.0.1", "eth0 10.0.0.2"])
    assert not made.changed
    made = for_pod(tmp_path, None, ["eth0 10.0.0.1"])
    assert states(made.data) == [("10.0.0.1", 80, 10)]
