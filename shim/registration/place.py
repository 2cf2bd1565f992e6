"""Moving a thread to where a pod is: its network, and its way of finding names.

Threads that it makes afterwards are there, too, those of gRPC among them; so it is done by the
first of a process that does nothing else, before there are any others.
Names are looked up by the C library as in the pod: with the resolv.conf and hosts that kubelet
made, mounted over the node's in a mount namespace of this process. Mounts that end on the node end
there, too, so that nothing is kept busy.
"""

from __future__ import annotations

import ctypes
import os
import socket
import tempfile
import threading
from collections.abc import Mapping
from typing import Any

from shim._native import ffi, lib
from shim.errors import RegistrationFailed
from shim.mount import BIND, REC, SLAVE
from shim.native import check

_NEWNET, _NEWNS = 0x40000000, 0x00020000  # linux/sched.h
_FILES = ("/etc/hosts", "/etc/resolv.conf")
# The node's may name a resolver that is asked over a Unix socket, and answers for the node.
_NSSWITCH = "hosts: files dns\n"
_PATIENCE = "timeout:2 attempts:2"


def enter(pid: int, spec: Mapping[str, Any]) -> None:
    """Go where the process is, with this thread and all that it will make. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _succeed(libc.setns(fd, _NEWNET), "setns", f"/proc/{pid}/ns/net")
    finally:
        os.close(fd)
    _succeed(libc.unshare(_NEWNS), "unshare", "")
    _mount("", "/", REC | SLAVE)
    sources = {m.get("destination"): m.get("source", "") for m in spec.get("mounts") or ()}
    for path in _FILES:
        if sources.get(path) and os.path.exists(path):
            _mount(sources[path], path, BIND)
    if os.path.exists("/etc/nsswitch.conf"):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(_NSSWITCH)
            file.flush()
            _mount(file.name, "/etc/nsswitch.conf", BIND)
    os.environ["RES_OPTIONS"] = _PATIENCE  # resolv.conf(5)


def _succeed(result: int, what: str, path: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}", path)


def _mount(source: str, target: str, flags: int) -> None:
    result = lib.thaw_mount(
        ffi.NULL, os.fsencode(source), os.fsencode(target), b"", flags, ffi.NULL
    )
    check(result, f"mount {flags:#x}", target)


def resolve(host: str, port: int, seconds: float) -> list[str]:
    """The addresses of a host, IPv4 first. Raises RegistrationFailed if there are none in time."""
    found: list[str] = []
    failed: list[OSError] = []

    def look() -> None:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.extend(str(address[0]) for *_, address in answers)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=look, daemon=True)  # it cannot be told when to give up
    thread.start()
    thread.join(seconds)
    if not found:
        reason = failed[0].strerror if failed else f"no answer within {seconds:.1f} s"
        raise RegistrationFailed(f"cannot find {host}: {reason}", hint="in the pod's own network")
    return sorted(dict.fromkeys(found), key=lambda address: ":" in address)


def host_and_port(text: str, port: int = 0) -> tuple[str, int]:
    """HOST, HOST:PORT or [ADDRESS]:PORT, taken apart; `port` is for one that has none."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, int(rest[1:]) if rest else port
    host, colon, rest = text.partition(":")
    return host, int(rest) if colon else port
