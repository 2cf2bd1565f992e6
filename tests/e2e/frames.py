"""What passes a lane's bridge: whole Ethernet frames, read and told apart."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import TracebackType
from typing import NamedTuple, Self

_EVERYTHING = 0x0003  # ETH_P_ALL
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_TCP, _ICMPV6 = 6, 58
_ADVERTISEMENT, _SOLICITED = 136, 0x40
_SYN, _FLAGS = 0x02, 0x17  # of FIN, SYN, RST, ACK

Address = IPv4Address | IPv6Address


class Packet(NamedTuple):
    """A packet of IP: its ends, its protocol, what it carries."""

    source: Address
    target: Address
    protocol: int
    body: bytes

    @property
    def port(self) -> int:
        """The port that it is sent to."""
        return int.from_bytes(self.body[2:4])

    @property
    def begins(self) -> bool:
        """Whether it asks for a connection of TCP."""
        return self.protocol == _TCP and self.body[13] & _FLAGS == _SYN

    @property
    def discovers(self) -> bool:
        """Whether it is about neighbours, routers or groups, and not about what is sent there."""
        return self.protocol == _ICMPV6 and self.body[0] >= 130


class Bridge:
    """Everything that passes a bridge from now on, for as long as the block lasts."""

    def __init__(self, name: str) -> None:
        # With a protocol it would hear all other interfaces, too, until it is bound to this one.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setblocking(False)
        self._socket.bind((name, _EVERYTHING))
        self._frames: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def frames(self) -> list[bytes]:
        """All frames until now."""
        while True:
            try:
                self._frames.append(self._socket.recv(1 << 16))
            except BlockingIOError:
                return self._frames

    def packets(self) -> list[Packet]:
        """Those of IP; a header's options and extensions are not expected."""
        return [packet for frame in self.frames() if (packet := _packet(frame))]

    def announced(self) -> set[Address]:
        """The addresses that were announced without having been asked for."""
        return {address for frame in self.frames() if (address := _announced(frame))}


def _packet(frame: bytes) -> Packet | None:
    kind, data = int.from_bytes(frame[12:14]), frame[14:]
    if kind == _IPV4:
        source, target, size = data[12:16], data[16:20], (data[0] & 15) * 4
        return Packet(ip_address(source), ip_address(target), data[9], data[size:])
    if kind == _IPV6:
        return Packet(ip_address(data[8:24]), ip_address(data[24:40]), *_carried(data))
    return None


def _carried(data: bytes) -> tuple[int, bytes]:
    """What an IPv6 packet carries, past the hop-by-hop options that reports to routers have."""
    protocol, body = data[6], data[40:]
    return (body[0], body[(body[1] + 1) * 8 :]) if protocol == 0 else (protocol, body)


def _announced(frame: bytes) -> Address | None:
    if int.from_bytes(frame[12:14]) == _ARP:
        _, sender, _, target = struct.unpack_from("!6s4s6s4s", frame, 22)
        return ip_address(sender) if sender == target else None
    packet = _packet(frame)
    if packet is None or packet.protocol != _ICMPV6:
        return None
    kind, flags = packet.body[0], packet.body[4]
    gratuitous = kind == _ADVERTISEMENT and not flags & _SOLICITED
    return ip_address(packet.body[8:24]) if gratuitous else None
