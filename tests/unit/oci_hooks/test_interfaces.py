"""What a kernel may say of a namespace and no test can make it say at will."""

from __future__ import annotations

import time
from ipaddress import ip_address
from typing import Any

import pytest

from oci_hooks.interfaces import Interfaces
from oci_hooks.steps import Step
from shim.errors import DeadlineExceeded, FailedPrecondition

UP, LOWER_UP, LOOPBACK = 0x1, 0x10000, 0x8
PERMANENT, TENTATIVE, DAD_FAILED, OPTIMISTIC = 0x80, 0x40, 0x8, 0x4


class Message(dict[str, Any]):
    """As pyroute2's: fields by name, attributes by `get_attr`."""

    def get_attr(self, name: str, default: Any = None) -> Any:
        return self["attributes"].get(name, default)


class Kernel:
    """As pyroute2's IPRoute, with one link and what a test says of it."""

    def __init__(self) -> None:
        self.flags = UP | LOWER_UP
        self.addresses: list[tuple[str, int]] = []
        self.neighbours: list[Message] = []
        self.asked: list[tuple[Any, ...]] = []

    def get_links(self) -> list[Message]:
        attributes = {"IFLA_IFNAME": "eth0", "IFLA_ADDRESS": "02:00:00:00:00:01"}
        return [Message(index=2, flags=self.flags, ifi_type=1, attributes=attributes)]

    def get_addr(self) -> list[Message]:
        return [
            Message(index=2, prefixlen=64, flags=0, scope=0,
                    attributes={"IFA_ADDRESS": address, "IFA_FLAGS": flags})
            for address, flags in self.addresses
        ]  # fmt: skip

    def get_neighbours(self) -> list[Message]:
        return self.neighbours

    def addr(self, verb: str, **place: Any) -> None:
        self.asked.append((verb, place["address"], place.get("flags")))
        self.addresses = [(a, flags & ~TENTATIVE) for a, flags in self.addresses]

    def neigh(self, verb: str, **place: Any) -> None:
        self.asked.append((verb, place["dst"]))

    def link(self, verb: str, **place: Any) -> None:
        self.asked.append((verb, place["index"], place["state"]))


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def step() -> Step:
    return Step(time.monotonic() + 0.05)


def settle(kernel: Kernel, step: Step, *, wait: bool = False) -> None:
    here = Interfaces(kernel)
    here.look()
    here.settle(step, [ip_address("fd00::5")], wait=wait)


def test_another_host_has_the_address(kernel: Kernel, step: Step) -> None:
    kernel.addresses = [("fd00::5", PERMANENT | TENTATIVE | DAD_FAILED)]
    with pytest.raises(FailedPrecondition, match="another host has fd00::5"):
        settle(kernel, step)


def test_an_address_set_anew(kernel: Kernel, step: Step) -> None:
    kernel.addresses = [("fd00::5", PERMANENT | TENTATIVE | 0x200)]
    settle(kernel, step)
    assert kernel.asked == [("del", "fd00::5", None), ("add", "fd00::5", 0x2 | PERMANENT | 0x200)]


@pytest.mark.parametrize(
    ("flags", "wait"), [(TENTATIVE, False), (TENTATIVE, True), (TENTATIVE | PERMANENT, True)]
)
def test_an_address_that_has_to_be_awaited(
    kernel: Kernel, step: Step, flags: int, wait: bool
) -> None:
    """One that a router gave has a lifetime, which would be lost."""
    kernel.addresses = [("fd00::5", flags)]
    with pytest.raises(DeadlineExceeded, match="fd00::5 is not usable yet"):
        settle(kernel, step, wait=wait)
    assert kernel.asked == []


def test_an_optimistic_address_is_used(kernel: Kernel, step: Step) -> None:
    kernel.addresses = [("fd00::5", TENTATIVE | OPTIMISTIC)]
    settle(kernel, step, wait=True)
    assert step.detail == "fd00::5"


def test_a_link_without_carrier(kernel: Kernel, step: Step) -> None:
    kernel.flags = UP
    kernel.addresses = [("fd00::5", PERMANENT)]
    with pytest.raises(DeadlineExceeded, match="eth0 has no carrier"):
        Interfaces(kernel).bring_up(step)


def test_links_without_addresses_stay(kernel: Kernel, step: Step) -> None:
    kernel.flags = 0
    Interfaces(kernel).bring_up(step)
    assert kernel.asked == []


@pytest.mark.parametrize(
    ("state", "flags", "managed", "dropped"),
    [(0x04, 0, None, True), (0x20, 0, 0, True), (0x02, 0, None, False), (0x80, 0, None, False),
     (0x04, 0x10, None, False), (0x04, 0, 1, False)],
)  # fmt: skip
def test_which_neighbours_are_dropped(
    kernel: Kernel, step: Step, state: int, flags: int, managed: int | None, dropped: bool
) -> None:
    attributes = {"NDA_DST": "10.0.0.1", "NDA_FLAGS_EXT": managed}
    kernel.neighbours = [
        Message(state=state, flags=flags, family=2, ifindex=2, attributes=attributes)
    ]
    Interfaces(kernel).forget_neighbours(step)
    assert kernel.asked == ([("del", "10.0.0.1")] if dropped else [])
