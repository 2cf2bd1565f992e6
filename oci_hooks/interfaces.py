"""Links, addresses, routes, neighbours and connections of this process's network namespace.

The restored process joins the namespace that CNI made for the new pod: addresses and routes are
there already. What is done here makes sure of it, and drops what is out of date.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from oci_hooks.steps import Step
from shim.errors import FailedPrecondition

Address = IPv4Address | IPv6Address

_UP, _LOOPBACK, _NOARP, _LOWER_UP = 0x1, 0x8, 0x80, 0x10000  # IFF_…, linux/if.h
_ETHERNET = 1  # ARPHRD_ETHER
_NODAD, _DAD_FAILED, _TENTATIVE, _PERMANENT, _NO_ROUTE = 0x2, 0x8, 0x40, 0x80, 0x200  # IFA_F_…
_OPTIMISTIC = 0x4
_UNIVERSE = 0  # RT_SCOPE_UNIVERSE
_UNICAST, _MAIN = 1, 254  # RTN_UNICAST, RT_TABLE_MAIN
# Neighbours that are not (any more) known to be there; the rest of NUD_… is in use, or was set.
_DOUBTFUL = 0x01 | 0x04 | 0x08 | 0x10 | 0x20
_LEARNED, _MANAGED = 0x10, 0x1  # NTF_EXT_LEARNED, NTF_EXT_MANAGED: others keep them
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True)
class Link:
    """One interface; `address` is that of the link, `talks` whether neighbours are found by it."""

    index: int
    name: str
    flags: int
    address: bytes
    talks: bool


@dataclass(frozen=True)
class Held:
    """An address that an interface has."""

    index: int
    address: Address
    prefix: int
    flags: int
    scope: int


class Interfaces:
    """A namespace's interfaces, through a pyroute2.IPRoute that was opened in it.

    `links`, by their number, and `addresses` are as they were when they were last looked at, which
    each step does for itself as far as it changes them: a look takes a millisecond.
    """

    def __init__(self, route: Any) -> None:
        self._route = route
        self.links: dict[int, Link] = {}
        self.addresses: list[Held] = []

    def look(self, *, links: bool = True, addresses: bool = True) -> None:
        """Ask the kernel."""
        if links:
            self.links = {m["index"]: _link(m) for m in self._route.get_links()}
        if addresses:
            self.addresses = [_held(message) for message in self._route.get_addr()]

    def bring_up(self, step: Step) -> None:
        """Bring up the loopback and every link that has addresses, and wait for the carrier.

        Others, such as the tunnels that the kernel makes in every namespace, stay as they are.
        """
        self.look()
        used = {held.index for held in self.addresses}
        wanted = {i for i, link in self.links.items() if i in used or link.flags & _LOOPBACK}
        down = [self.links[index] for index in wanted if not self.links[index].flags & _UP]
        for link in down:
            self._route.link("set", index=link.index, state="up")
        if down:
            self.look()
        while waiting := [link.name for link in self._silent(wanted)]:
            step.wait(f"{', '.join(sorted(waiting))} has no carrier")
            self.look(addresses=False)
        step.detail = ", ".join(f"{link.name} was down" for link in down)

    def _silent(self, wanted: Collection[int]) -> list[Link]:
        """The links that cannot send yet; one that is gone since is none."""
        links = [link for index, link in self.links.items() if index in wanted]
        return [link for link in links if not link.flags & _LOWER_UP]

    def settle(self, step: Step, expected: Collection[Address], *, wait: bool) -> None:
        """Wait until the expected addresses are there, and all can be used.

        An IPv6 address is not usable while the kernel looks for another host that has it, for one
        or two seconds (RFC 4862). No other pod has it: with `wait` that is awaited, otherwise such
        an address is set anew, as one that needs no looking.
        """
        while True:
            found = [held for held in self.addresses if not held.address.is_loopback]
            for held in found:
                if held.flags & _DAD_FAILED:
                    raise FailedPrecondition(
                        f"another host has {held.address}", hint="duplicate address detection"
                    )
            tentative = [held for held in found if _looked_for(held, always=wait)]
            missing = set(expected) - {held.address for held in found}
            if not missing and not tentative:
                break
            hurried = [] if wait else [held for held in tentative if held.flags & _PERMANENT]
            for held in hurried:
                self._set_anew(held)
            if not hurried:
                step.wait(_complaint(missing, tentative))
            self.look(links=False)
        step.detail = ", ".join(str(held.address) for held in found)

    def _set_anew(self, held: Held) -> None:
        place = {"index": held.index, "address": str(held.address), "prefixlen": held.prefix}
        self._route.addr("del", **place)
        flags = _NODAD | _PERMANENT | held.flags & _NO_ROUTE
        self._route.addr("add", flags=flags, **place)

    def routed(self) -> set[int]:
        """The families, 4 or 6, that have a default route."""
        return {
            version
            for version, family in FAMILIES.items()
            for message in self._route.get_routes(family=family)
            if message["dst_len"] == 0
            and message["type"] == _UNICAST
            and message.get_attr("RTA_TABLE") == _MAIN
        }

    def check_routes(self, step: Step, expected: Collection[int]) -> list[str]:
        """Wait for the default routes of the expected families.

        Answers what is odd: a family with addresses of which nothing leads out.
        """
        while missing := set(expected) - (routed := self.routed()):
            step.wait(f"no default route for {', '.join(f'IPv{v}' for v in sorted(missing))}")
        step.detail = ", ".join(f"IPv{version}" for version in sorted(routed))
        have = {h.address.version for h in self.addresses if is_announced(h)}
        return [f"there is no default route for IPv{v}" for v in sorted(have - routed)]

    def forget_neighbours(self, step: Step) -> None:
        """Drop what is known of neighbours that have not been heard of lately."""
        from pyroute2.netlink.exceptions import NetlinkError

        dropped = 0
        for message in self._route.get_neighbours():
            kept = (
                message["flags"] & _LEARNED or (message.get_attr("NDA_FLAGS_EXT") or 0) & _MANAGED
            )
            if message["state"] & _DOUBTFUL and not kept:
                with suppress(NetlinkError):  # it is gone
                    self._route.neigh(
                        "del",
                        family=message["family"],
                        ifindex=message["ifindex"],
                        dst=message.get_attr("NDA_DST"),
                    )
                    dropped += 1
        step.detail = f"{dropped} dropped" if dropped else ""


def is_announced(held: Held) -> bool:
    """Whether neighbours are to know of an address: not if it is only of use on the host."""
    return held.scope == _UNIVERSE and not held.address.is_loopback


def forget_connections(step: Step, old: Collection[Address]) -> str:
    """Drop what the kernel tracks of connections of addresses that are the pod's no longer.

    Answers why it was not done, if it was not.
    """
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

    if not _tracked():  # else all of the machine's are looked at, which takes 10 ms and more
        return ""
    dropped = 0
    for family in {FAMILIES[address.version] for address in old}:
        try:
            with NFCTSocket(nfgen_family=family) as tracked:
                for message in list(tracked.dump()):
                    if not _ends(message) & set(old):
                        continue
                    origin = NFCTAttrTuple.from_netlink(family, message.get_attr("CTA_TUPLE_ORIG"))
                    with suppress(NetlinkError):  # it is gone
                        tracked.entry("del", tuple_orig=origin)
                        dropped += 1
        except (NetlinkError, OSError) as error:
            return f"connection tracking cannot be read: {error}"
    step.detail = f"{dropped} dropped" if dropped else ""
    return ""


def _tracked() -> int:
    """How many connections are tracked in this namespace; 0 also if the kernel cannot."""
    try:
        with open("/proc/sys/net/netfilter/nf_conntrack_count") as file:
            return int(file.read())
    except FileNotFoundError:
        return 0


def _ends(message: Any) -> set[Address]:
    return {
        ip_address(value)
        for name in ("CTA_TUPLE_ORIG", "CTA_TUPLE_REPLY")
        for _, value in message.get_attr(name).get_attr("CTA_TUPLE_IP")["attrs"]
    }


def _link(message: Any) -> Link:
    text = message.get_attr("IFLA_ADDRESS") or ""
    address = bytes.fromhex(text.replace(":", ""))
    talks = message["ifi_type"] == _ETHERNET and not message["flags"] & _NOARP
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        flags=message["flags"],
        address=address,
        talks=talks and len(address) == 6,
    )


def _held(message: Any) -> Held:
    # They differ on a point-to-point link, where IFA_ADDRESS is the peer's.
    text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return Held(
        index=message["index"],
        address=ip_address(text),
        prefix=message["prefixlen"],
        flags=message.get_attr("IFA_FLAGS", message["flags"]),
        scope=message["scope"],
    )


def _looked_for(held: Held, *, always: bool) -> bool:
    """Whether the address is to be awaited; that of a link only if all are."""
    tentative = held.flags & _TENTATIVE and not held.flags & _OPTIMISTIC
    return bool(tentative) and (always or held.scope == _UNIVERSE)


def _complaint(missing: Collection[Address], tentative: Collection[Held]) -> str:
    if missing:
        return f"{', '.join(map(str, sorted(missing, key=str)))} is not there"
    return f"{', '.join(str(held.address) for held in tentative)} is not usable yet"
