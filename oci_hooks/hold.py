"""The hold: nothing enters or leaves a pod's network namespace until its worker has proved itself.

CRIU lets the processes run before anybody could ask them a question. So from before the restore
until the canary has passed a table `thaw` drops every packet but those of the loopback, those of
neighbour discovery (a neighbour that is not answered is given up for a second), and those to and
from addresses that the caller names, for a canary that comes from outside.

What a worker sends meanwhile is lost, not refused: dropped before the device (`netdev egress`),
where also raw sockets pass, which are told ENOBUFS. Dropped at `inet output`, as on kernels older
than 5.16, sendto(2) says EPERM. A connection tried meanwhile goes on one second after its first
packet. All containers of the pod are held: they share its network.

The hold ends in one transaction. It does not end with the process that made it: an engine that died
must leave the worker unseen until the restore is undone. Containers of one pod may be restored at
the same time: each has a table of its own, and packets pass once the last of them is gone.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address

from oci_hooks.nftables import (
    EGRESS,
    INET,
    INPUT,
    NETDEV,
    OUTPUT,
    Batch,
    has_table,
    meta,
    payload,
    tables,
)
from shim.errors import InvalidArgument, Unavailable
from shim.namespaces import inside, is_own

TABLE = "thaw"  # and -CONTAINER
# CRIU's own lock, by which it keeps connections from being reset until it has restored them. It
# forgets to take it off when a restore fails: a container that boots cold then would be cut off.
_CRIU = "CRIU-"
SECONDS = 2.0
# Before connection tracking (-200), which would remember what is dropped.
_PRIORITY = -300
_LOOPBACK = (1).to_bytes(4, "little")  # the interface's number in every namespace
_ARP, _IPV4, _IPV6 = b"\x08\x06", b"\x08\x00", b"\x86\xdd"
_ICMPV6 = bytes([58])
# Types of ICMPv6 (RFC 4861, RFC 3810): listeners, routers, neighbours, redirects; listeners again.
_DISCOVERY = ((130, 137), (143, 143))
# Where addresses stand in a packet: source, destination.
_OFFSETS = {4: (12, 16), 6: (8, 24)}
# What a kernel says that has no chains behind devices.
_NO_EGRESS = (errno.EOPNOTSUPP, errno.ENOENT, errno.EINVAL)


def hold(
    namespace: str, allow: Sequence[str] = (), owner: str = "", seconds: float = SECONDS
) -> str:
    """Let nothing in or out of the network namespace at a path; done again, it is as if done once.

    `allow` are addresses from which a canary may come; `owner` is the container's id. Answers
    "egress" or "output", for where packets are dropped that would leave. Raises OSError if there is
    no such namespace, Unavailable if the kernel has no nftables, InvalidArgument for what is no
    address.
    """
    if is_own(namespace, "net"):  # whatever led here: nobody could undo it from outside
        raise InvalidArgument(f"{namespace} is the host's network", hint="a pod's can be held")
    packed = [_address(text) for text in allow]
    with _refusing(namespace):
        return inside(namespace, "net", lambda: _hold(_table(owner), packed, seconds))


def let_pass(namespace: str, owner: str = "", seconds: float = SECONDS) -> None:
    """End the owner's hold, all at once; there need not be one. Raises as `hold`.

    Its tables stay, without any effect: who is in a hurry has `release` remove them later.
    """
    with _refusing(namespace):
        inside(namespace, "net", lambda: _let_pass(_table(owner), seconds))


def release(namespace: str, owner: str = "", seconds: float = SECONDS) -> None:
    """End the owner's hold, and remove its tables, for which the kernel takes 10 to 30 ms.

    There need not be any. Raises as `hold`.
    """
    with _refusing(namespace):
        inside(namespace, "net", lambda: _release(_table(owner), seconds))


def unlock(namespace: str, seconds: float = SECONDS) -> None:
    """Remove what a CRIU that failed has locked; there need not be anything. Raises as `hold`.

    One that is at work for another container of the pod at this moment does without from here on:
    its name is not known, and a container that boots cold behind a lock is cut off for good.
    """
    with _refusing(namespace):
        inside(namespace, "net", lambda: _unlock(seconds))


def is_held(namespace: str, owner: str = "", seconds: float = SECONDS) -> bool:
    """Whether the namespace is held for the owner. Raises as `hold`."""
    with _refusing(namespace):
        return inside(namespace, "net", lambda: has_table(INET, _table(owner), seconds))


def _table(owner: str) -> str:
    return f"{TABLE}-{owner}" if owner else TABLE


def _hold(table: str, allow: list[bytes], seconds: float) -> str:
    # One that goes before the next line needs no hold; one that comes later is not the pod's.
    devices = tuple(name for _, name in socket.if_nameindex() if name != "lo")
    for egress in (devices, ()) if devices else ((),):
        for replacing in (False, True):  # the kernel takes 10 ms and more to delete a table
            try:
                _rules(table, allow, egress, replacing=replacing).commit(seconds)
            except FileExistsError:
                continue
            except OSError as error:
                if not egress or error.errno not in _NO_EGRESS:
                    raise
                break
            return "egress" if egress else "output"
    raise OSError(errno.EEXIST, "the table is made anew all the time")


def _rules(table: str, allow: list[bytes], devices: tuple[str, ...], *, replacing: bool) -> Batch:
    batch = Batch()
    if replacing:
        batch.without_table(INET, table)
        if devices:
            batch.without_table(NETDEV, table)
    batch.table(INET, table, new=True)
    batch.chain(INET, table, "input", hook=INPUT, priority=_PRIORITY)
    batch.accept(INET, table, "input", meta("iif", "==", _LOOPBACK))
    _accept(batch, INET, table, "input", allow, 0)
    if devices:
        batch.table(NETDEV, table, new=True)
        batch.chain(NETDEV, table, "egress", hook=EGRESS, priority=0, devices=devices)
        batch.accept(NETDEV, table, "egress", meta("protocol", "==", _ARP))
        _accept(batch, NETDEV, table, "egress", allow, 1)
    else:
        batch.chain(INET, table, "output", hook=OUTPUT, priority=_PRIORITY)
        batch.accept(INET, table, "output", meta("oif", "==", _LOOPBACK))
        _accept(batch, INET, table, "output", allow, 1)
    return batch


def _accept(
    batch: Batch, family: int, table: str, chain: str, allow: list[bytes], end: int
) -> None:
    """Accept neighbour discovery, and packets of which that end is an allowed address."""
    ours = meta("protocol", "==", _IPV6) + meta("l4proto", "==", _ICMPV6)
    for low, high in _DISCOVERY:
        kind = (payload("transport", 0, op, bytes([n])) for op, n in ((">=", low), ("<=", high)))
        batch.accept(family, table, chain, ours, *kind)
    for address in allow:
        version, protocol = (4, _IPV4) if len(address) == 4 else (6, _IPV6)
        place = payload("network", _OFFSETS[version][end], "==", address)
        batch.accept(family, table, chain, meta("protocol", "==", protocol), place)


def _let_pass(table: str, seconds: float) -> None:
    """Rules take effect at once, where deleting waits for all processors to have seen it."""
    for family, chain in ((NETDEV, "egress"), (INET, "output")):
        batch = Batch()
        batch.accept(INET, table, "input")
        batch.accept(family, table, chain)
        if _commit(batch, seconds):
            return


def _release(table: str, seconds: float) -> None:
    _let_pass(table, seconds)
    batch = Batch()
    for family in (INET, NETDEV):
        if has_table(family, table, seconds):  # a device that has gone takes its chain along
            batch.without_table(family, table)
    batch.commit(seconds)


def _unlock(seconds: float) -> None:
    batch = Batch()
    for table in tables(INET, seconds):
        if table.startswith(_CRIU):
            batch.without_table(INET, table)
    batch.commit(seconds)


def _commit(batch: Batch, seconds: float) -> bool:
    """Whether the kernel has what the batch names."""
    try:
        batch.commit(seconds)
    except OSError as error:
        if error.errno not in _NO_EGRESS:
            raise
        return False
    return True


@contextmanager
def _refusing(namespace: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise Unavailable(
            f"{namespace}: the kernel does not answer", hint="is the machine overloaded?"
        ) from error
    except OSError as error:
        if error.filename is not None:
            raise
        raise Unavailable(
            f"{namespace}: nftables: {error.strerror}",
            hint="the kernel needs CONFIG_NF_TABLES_INET, and we CAP_NET_ADMIN",
        ) from error


def _address(text: str) -> bytes:
    try:
        return ip_address(text).packed
    except ValueError:
        raise InvalidArgument(f"{text!r} is no address", hint="as in 10.0.0.1 or fd00::1") from None
