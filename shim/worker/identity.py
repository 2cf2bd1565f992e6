"""Who a worker is now: identity.json in its control directory, made anew at every start.

What was restored is a clone: the same random state, the same ids. A fresh generation id and entropy
let it become somebody else before it is seen.
"""

from __future__ import annotations

import os
import time
from _socket import AF_INET6, inet_ntop

from shim.annotations import CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID
from shim.lean import jsons
from shim.worker.control import IDENTITY, find

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

ENTROPY = 64  # bytes
_SECRET = ("entropy",)


def make(
    notes: Mapping[str, str],
    *,
    container: str,
    hostname: str,
    ips: list[str],
    snapshot: str = "",
    restored: bool = False,
) -> dict[str, Any]:
    """A new identity. `notes` are the live container's annotations, `container` is its id.

    `snapshot` is the reference that it was restored from, if it was.
    """
    return {
        "generation": _uuid4(),
        "entropy": os.urandom(ENTROPY).hex(),
        "pod": notes.get(POD_NAME, ""),
        "namespace": notes.get(POD_NAMESPACE, ""),
        "uid": notes.get(POD_UID, ""),
        "ips": ips,
        "hostname": hostname,
        "node": os.uname().nodename,
        "container": notes.get(CONTAINER_NAME, container),
        "snapshot": snapshot,
        "restored": restored,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def introduce(
    spec: Mapping[str, Any],
    *,
    container: str,
    pid: int,
    hostname: str,
    snapshot: str = "",
    restored: bool = False,
) -> dict[str, Any]:
    """Make the identity of the container whose init is `pid`, and tell the worker, if it listens.

    Raises OSError, FailedPrecondition if it cannot be told.
    """
    made = make(
        spec.get("annotations") or {},
        container=container,
        hostname=hostname,
        ips=addresses(pid),
        snapshot=snapshot,
        restored=restored,
    )
    control = find(spec)
    if control is not None:
        control.write(IDENTITY, encode(made))
    return made


def encode(identity: Mapping[str, Any]) -> bytes:
    """What is written to identity.json."""
    return jsons.dumps(dict(identity)) + b"\n"


def public(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What others may know of it: no entropy."""
    return {key: value for key, value in identity.items() if key not in _SECRET}


def addresses(pid: int | str) -> list[str]:
    """The addresses of a process's network namespace, IPv4 first; none of loopback or link.

    From /proc/PID/net: fib_trie lists the local IPv4 ones, if_inet6 those of IPv6. Raises OSError
    if there is no such process.
    """
    with open(f"/proc/{pid}/net/fib_trie") as file:
        found = _ipv4(file.read().split("\n"))
    try:
        with open(f"/proc/{pid}/net/if_inet6") as file:
            found += _ipv6(file.read().split("\n"))
    except FileNotFoundError:
        pass  # without IPv6
    return list(dict.fromkeys(found))


def _ipv4(lines: list[str]) -> list[str]:
    found, before = [], ""
    for line in lines:
        if line.strip() == "/32 host LOCAL" and not before.startswith("127."):
            found.append(before)
        before = line.strip().removeprefix("|-- ")
    return found


def _ipv6(lines: list[str]) -> list[str]:
    """Of lines `address interface prefix scope flags name` those whose scope is global."""
    fields = [line.split() for line in lines if line]
    return [inet_ntop(AF_INET6, bytes.fromhex(f[0])) for f in fields if f[3] == "00"]


def _uuid4() -> str:
    """RFC 9562, version 4."""
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
