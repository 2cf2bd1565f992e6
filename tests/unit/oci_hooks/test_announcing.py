"""Frames that tell neighbours where an address is, bit by bit as the RFCs have them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from oci_hooks.announcing import Announcement, advertisement, arp, checksum, frames

LINK = bytes.fromhex("02aabbccddee")


def test_arp() -> None:
    address = IPv4Address("10.0.0.5")
    request, reply = frames(LINK, address)
    assert request.hex(" ") == (
        "ff ff ff ff ff ff 02 aa bb cc dd ee 08 06 "
        "00 01 08 00 06 04 00 01 "
        "02 aa bb cc dd ee 0a 00 00 05 00 00 00 00 00 00 0a 00 00 05"
    )
    assert reply == arp(LINK, address, 2)
    assert reply[20:22] == b"\0\2"
    assert reply[32:38] == LINK


def test_advertisement() -> None:
    address = IPv6Address("fd00::5")
    (frame,) = frames(LINK, address)
    assert frame == advertisement(LINK, address)
    assert frame[:14].hex() == "333300000001" + LINK.hex() + "86dd"
    packet, body = frame[14:54], frame[54:]
    assert packet[:8].hex() == "60000000" + "0020" + "3a" + "ff", "32 bytes, ICMPv6, 255 hops"
    assert packet[8:24] == address.packed
    assert packet[24:] == IPv6Address("ff02::1").packed
    assert body[:2] == bytes([136, 0])
    assert body[4:8] == bytes([0x20, 0, 0, 0]), "overrides; not solicited, no router"
    assert body[8:24] == address.packed
    assert body[24:] == bytes([2, 1]) + LINK
    pseudo = packet[8:40] + (32).to_bytes(4) + (58).to_bytes(4)
    assert checksum(pseudo + body) == 0, "with its checksum in it"


def test_nothing_to_announce() -> None:
    nothing = Announcement({})
    nothing.send(1)
    nothing.close()
