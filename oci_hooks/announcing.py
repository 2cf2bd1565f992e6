"""Announcements: what tells the neighbours at which link address the pod's addresses are.

Gratuitous ARP (RFC 5227, section 3) and unsolicited neighbour advertisements (RFC 4861, section
7.2.6), as whole Ethernet frames: they pass a hold, and need no address that is ready.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address

_BROADCAST = b"\xff" * 6
_ALL_NODES_LINK = bytes.fromhex("333300000001")
_ALL_NODES = IPv6Address("ff02::1").packed
_ETHERNET, _ARP, _IPV4, _IPV6 = 1, 0x0806, 0x0800, 0x86DD
_REQUEST, _REPLY = 1, 2
_ICMPV6, _HOPS = 58, 255
_ADVERTISEMENT, _OVERRIDE, _LINK_ADDRESS = 136, 0x20000000, 2


def frames(link: bytes, address: IPv4Address | IPv6Address) -> list[bytes]:
    """The frames that announce an address at a link address of 6 bytes."""
    if address.version == 4:
        # Some listen to one kind only.
        return [arp(link, address, kind) for kind in (_REQUEST, _REPLY)]
    return [advertisement(link, address)]


def arp(link: bytes, address: IPv4Address, kind: int) -> bytes:
    """An ARP packet from and for the same address."""
    head = struct.pack("!HHBBH", _ETHERNET, _IPV4, 6, 4, kind)
    target = bytes(6) if kind == _REQUEST else link
    body = head + link + address.packed + target + address.packed
    return _BROADCAST + link + _ARP.to_bytes(2) + body


def advertisement(link: bytes, address: IPv6Address) -> bytes:
    """An advertisement that nobody asked for, and that overrides what is known."""
    option = struct.pack("!BB", _LINK_ADDRESS, 1) + link
    head = struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, _OVERRIDE)
    body = head + address.packed + option
    pseudo = address.packed + _ALL_NODES + struct.pack("!II", len(body), _ICMPV6)
    body = body[:2] + checksum(pseudo + body).to_bytes(2) + body[4:]
    packet = struct.pack("!IHBB", 6 << 28, len(body), _ICMPV6, _HOPS) + address.packed + _ALL_NODES
    return _ALL_NODES_LINK + link + _IPV6.to_bytes(2) + packet + body


def checksum(data: bytes) -> int:
    """The checksum of IP (RFC 1071); the data's length is even."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Announcement:
    """Frames to be sent, some by each interface of this process's network namespace, by its name.

    Closing takes 10 ms, as the kernel waits until all processors have let go of a packet socket.
    """

    def __init__(self, packets: Mapping[str, Sequence[bytes]]) -> None:
        self._packets = packets
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW) if packets else None

    def send(self, seconds: float) -> None:
        """Send them all, once. Raises OSError."""
        for interface, packets in self._packets.items():
            assert self._socket is not None
            self._socket.settimeout(seconds)
            for packet in packets:
                self._socket.sendto(packet, (interface, 0))

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
