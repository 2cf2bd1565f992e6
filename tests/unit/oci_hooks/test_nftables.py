"""Transactions of nftables: all of one or nothing of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from fakes.namespaces import Namespace, Network
from fakes.settled import PATIENCE

from oci_hooks import nftables
from oci_hooks.nftables import INET, INPUT, NETDEV, Batch, has_table, meta, payload

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")


@pytest.fixture(scope="module")
def pod() -> Iterator[Namespace]:
    with Network() as network:
        yield network.outside


def commit(pod: Namespace, batch: Batch) -> None:
    pod.within(lambda: batch.commit(PATIENCE))


def there(pod: Namespace, family: int, name: str) -> bool:
    return pod.within(lambda: has_table(family, name, PATIENCE))


def test_all_of_it(pod: Namespace) -> None:
    made = Batch()
    made.table(INET, "one", new=True)
    made.table(NETDEV, "one")
    made.chain(INET, "one", "in", hook=INPUT, priority=-300)
    made.accept(INET, "one", "in", meta("iif", "==", b"\1\0\0\0"))
    made.accept(INET, "one", "in", payload("transport", 0, ">=", b"\x85"))
    commit(pod, made)
    assert there(pod, INET, "one")
    assert there(pod, NETDEV, "one")
    assert not there(pod, INET, "two")
    gone = Batch()
    gone.without_table(INET, "one")
    gone.without_table(NETDEV, "one")
    for _ in range(2):
        commit(pod, gone)
        assert not there(pod, INET, "one")
        assert not there(pod, NETDEV, "one")


def test_or_nothing(pod: Namespace) -> None:
    batch = Batch()
    batch.table(INET, "two")
    batch.accept(INET, "two", "nowhere")
    with pytest.raises(FileNotFoundError):
        commit(pod, batch)
    assert not there(pod, INET, "two")


def test_a_table_that_must_be_new(pod: Namespace) -> None:
    batch = Batch()
    batch.table(INET, "three", new=True)
    commit(pod, batch)
    with pytest.raises(FileExistsError):
        commit(pod, batch)


def test_a_kernel_that_does_not_answer(pod: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "send", lambda _self, data: len(data))
    Batch().commit(0.01)  # it is not asked anything
    batch = Batch()
    batch.table(INET, "four")
    with pytest.raises(TimeoutError):
        pod.within(lambda: batch.commit(0.01))
    with pytest.raises(TimeoutError):
        pod.within(lambda: has_table(INET, "four", 0.01))


def test_a_refusal_to_say(pod: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nftables, "_SUBSYSTEM", 99)
    with pytest.raises(OSError, match="Invalid argument"):
        there(pod, INET, "five")
