"""A namespace's addresses, read from outside; what is called in it leaves this process alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from fakes.namespaces import Namespace, Network

from shim.namespaces import inside
from shim.restore.namespace import addresses

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")


@pytest.fixture(scope="module")
def pod() -> Iterator[Namespace]:
    with Network() as network:
        yield network.pod(4)


def test_addresses(pod: Namespace) -> None:
    found = [line for line in addresses(pod.path) if " fe80:" not in line]
    assert found == ["eth0 10.99.4.2", "eth0 fd99:4::2"]
    pod.ip("addr", "add", "10.9.9.9", "peer", "10.9.9.8", "dev", "eth0")
    pod.ip("addr", "add", "10.7.7.7/32", "dev", "lo")
    assert {"eth0 10.9.9.9", "lo 10.7.7.7"} <= set(addresses(pod.path))


def test_this_process_stays(pod: Namespace) -> None:
    before = os.stat("/proc/thread-self/ns/net").st_ino
    there = inside(pod.path, "net", lambda: os.stat("/proc/thread-self/ns/net").st_ino)
    assert there == os.stat(pod.path).st_ino
    assert os.stat("/proc/thread-self/ns/net").st_ino == before != there


def test_a_socket_stays_there(pod: Namespace) -> None:
    with inside(pod.path, "net", lambda: socket.create_server((pod.address4, 0))) as made:
        assert made.getsockname()[0] == pod.address4


def test_what_fails_there_fails_here(pod: Namespace) -> None:
    with pytest.raises(ZeroDivisionError):
        inside(pod.path, "net", lambda: 1 // 0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        addresses("/run/netns/nowhere")
    with pytest.raises(OSError, match="setns") as caught:
        addresses("/etc/passwd")
    assert caught.value.filename == "/etc/passwd"
