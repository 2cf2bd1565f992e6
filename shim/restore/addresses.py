"""Sockets of the old pod, moved to the new pod's addresses in CRIU's images before CRIU reads them.

CRIU binds sockets to the addresses that they had. What becomes of each kind:

    on a wildcard, loopback, group    untouched
    on an address of the old pod      moved to the new pod's counterpart
    a TCP connection of which both    kept, with what is on its way, on the new address if it was
    ends are in the images            on the old one
    any other TCP connection          closed: end of file, EPIPE, hang-up
    a connected UDP socket            the same peer, from the new address: UDP has no connection
                                      that could be lost; closed if the pod lacks the family

A connection that is closed here is none to CRIU, so `tcp-close`, which closes all, is not needed,
and those inside the container live on. Nothing else in the images of a pod has addresses: its
network namespace is not CRIU's to restore, and a tcp-stream-*.img has sequence numbers and data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from shim.errors import Damaged, Unfit
from shim.lean.values import Value
from shim.restore.fields import Changes
from shim.restore.sockets import CLOSED, NAME, TCP, FilesImage, Socket, closed, moved
from shim.snapshot.images import NotIndexable, read_plain

Address = IPv4Address | IPv6Address
_SYN_SENT, _SYN_RECEIVED = 2, 3
_DEAD = (CLOSED, _SYN_SENT, _SYN_RECEIVED)
_MAPPED = bytes(10) + b"\xff\xff"
_HINT = "the worker is bound to an address that this pod does not have; bind it to a wildcard"


class Rewritten(Value):
    """The new files.img, and how many sockets were moved, kept as connections, and closed.

    A connection that is kept on another address counts as both.
    """

    data: bytes = field(repr=False)
    moved: int
    kept: int
    closed: int

    @property
    def changed(self) -> bool:
        """Whether CRIU has to read it instead of its own."""
        return bool(self.moved or self.closed)

    def describe(self) -> str:
        """The numbers, in words."""
        return f"{self.moved} moved, {self.kept} kept, {self.closed} closed"


def for_pod(images: Path, old: Sequence[str] | None, new: Sequence[str]) -> Rewritten:
    """The files.img of a folder of images, for a pod with other addresses.

    Both are lists as `namespace.addresses` gives them. None: the snapshot does not say which the
    old ones were, so they are those of its sockets. Raises Damaged, Unfit.
    """
    try:
        data = read_plain(images / NAME)
    except NotIndexable as error:
        raise Damaged(str(error), hint="the snapshot is damaged") from error
    here = [address for _, address in _listed(new)]
    if old is None:
        old = [f" {address}" for address in bound(data) if address not in here]
    return rewritten(data, counterparts(old, new), here)


def counterparts(old: Sequence[str], new: Sequence[str]) -> dict[Address, Address | None]:
    """For each of the old pod's addresses the new pod's, None if it has none.

    Both are lists of "INTERFACE ADDRESS", in the kernel's order, as `namespace.addresses` gives
    them. The first of an interface stands for the first of the interface of that name, by family
    and scope; an interface that the new pod does not have, for the first that is left.
    Raises Unfit for what is no such list.
    """
    olds, left = _listed(old), _listed(new)
    found: dict[Address, Address | None] = {}
    for same_interface in (True, False):
        for interface, address in olds:
            if found.get(address) is not None:
                continue
            fits = [
                entry
                for entry in left
                if (entry[0] == interface if same_interface else entry[0] != "lo")
                and (entry[1].version, entry[1].is_link_local)
                == (address.version, address.is_link_local)
            ]
            found[address] = fits[0][1] if fits else None
            if fits:
                left.remove(fits[0])
    return found


def bound(files_img: bytes) -> list[Address]:
    """The addresses of the old pod as far as its sockets tell: for snapshots that do not."""
    sockets = FilesImage(files_img).sockets
    found = {_plain(s.source) for s in sockets if s.source_port or s.peer_port}
    return sorted((a for a in found if not _anywhere(a)), key=lambda a: (a.version, int(a)))


def rewritten(
    files_img: bytes, counterparts: Mapping[Address, Address | None], here: Iterable[Address] = ()
) -> Rewritten:
    """The image for a pod in which old addresses have these counterparts.

    `here` are further addresses that the new pod has, and that sockets may be bound to already.
    Raises Damaged if the bytes are no files.img, Unfit if a socket has nowhere to go.
    """
    image = FilesImage(files_img)
    known = {address: address for address in here} | dict(counterparts)
    inside = _inside(image.sockets, known)
    moves: dict[int, Changes] = {}
    closes: dict[int, Changes] = {}
    for socket in image.sockets:
        place = _place(socket, known)
        if _is_connection(socket) and socket.id not in inside:
            closes[socket.id] = closed(socket)
        elif place is not None:
            if change := _move(socket, *place):
                moves[socket.id] = change
        elif socket.peer_port:
            closes[socket.id] = closed(socket)
        else:
            where = f"a socket is bound to {_shown(socket)}"
            raise Unfit(f"{where}, which has no counterpart in the new pod", hint=_HINT)
    changes = moves | closes
    data = image.changed(changes) if changes else files_img
    return Rewritten(data, len(moves), len(inside), len(closes))


def _place(
    socket: Socket, known: Mapping[Address, Address | None]
) -> tuple[Address, Address] | None:
    """Where a socket and its peer are in the new pod; None: nowhere."""
    source, peer = _plain(socket.source), _plain(socket.peer)
    stays = not socket.source_port or _anywhere(source)
    there = source if stays else known.get(source)
    return None if there is None else (there, known.get(peer) or peer)


def _move(socket: Socket, source: Address, peer: Address) -> Changes:
    return moved(
        None if source == _plain(socket.source) else _packed(source, socket),
        None if peer == _plain(socket.peer) else _packed(peer, socket),
    )


def _inside(found: list[Socket], known: Mapping[Address, Address | None]) -> set[int]:
    """The ids of the connections both ends of which are there and can come back.

    Loopback alone says nothing: the peer may be in another container of the old pod.
    """
    ends = {_ends(s): s for s in found if _is_connection(s) and s.state not in _DEAD}
    kept = set()
    for (namespace, source, peer), socket in ends.items():
        other = ends.get((namespace, peer, source))
        # A link-local address needs a scope, without which CRIU binds connections (sk-tcp.c:359).
        stays = source[0].is_loopback or (
            known.get(source[0]) is not None and not source[0].is_link_local
        )
        if other is not None and stays:
            kept.add(socket.id)
    # Ends on two addresses, of which one has no counterpart: neither can come back.
    return {
        socket.id
        for (namespace, source, peer), socket in ends.items()
        if socket.id in kept and ends[namespace, peer, source].id in kept
    }


def _is_connection(socket: Socket) -> bool:
    return socket.protocol == TCP and socket.peer_port != 0  # as CRIU sees it, sk-inet.c:702


_End = tuple[Address, int]


def _ends(socket: Socket) -> tuple[int, _End, _End]:
    return (
        socket.namespace,
        (_plain(socket.source), socket.source_port),
        (_plain(socket.peer), socket.peer_port),
    )


def _plain(packed: bytes) -> Address:
    """The address; an IPv4 address also if it is written as one of IPv6."""
    if len(packed) == 4:
        return IPv4Address(packed)
    return IPv4Address(packed[12:]) if packed[:12] == _MAPPED else IPv6Address(packed)


def _packed(address: Address, socket: Socket) -> bytes:
    mapped = len(socket.source) == 16 and address.version == 4
    return _MAPPED + address.packed if mapped else address.packed


def _anywhere(address: Address) -> bool:
    """Whether it is the same in every pod."""
    broadcast = address == IPv4Address("255.255.255.255")
    return address.is_unspecified or address.is_loopback or address.is_multicast or broadcast


def _listed(lines: Sequence[str]) -> list[tuple[str, Address]]:
    found = []
    for line in lines:
        interface, _, text = line.rpartition(" ")
        try:
            found.append((interface, ip_address(text)))
        except ValueError:
            raise Unfit(f"{line!r:.80} is no address", hint="the snapshot is damaged") from None
    return found


def _shown(socket: Socket) -> str:
    address = _plain(socket.source)
    text = f"[{address}]" if address.version == 6 else str(address)
    return f"{text}:{socket.source_port}"
