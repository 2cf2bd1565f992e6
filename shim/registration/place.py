"""Moving a thread to where a pod is: its network, and its way of finding names.

Threads that it makes afterwards are there, too, those of gRPC among them; so it is done by the
first of a process that does nothing else, before there are any others.

Names are looked up by the C library as in the pod, with copies of its resolv.conf and hosts over
the node's, in a mount namespace of this process. The container can write to its own: the library
takes any line into memory, however long, and waits for whoever is named there. So a copy has a
bound, as has all that the process may take, and there is one look-up at a time. Mounts that end on
the node end here, too, so that nothing is kept busy.
"""

from __future__ import annotations

import os
import resource
import socket
import stat
import threading
from collections.abc import Mapping
from typing import Any

from shim._native import ffi, lib
from shim.errors import RegistrationFailed
from shim.mount import BIND, DETACH, NODEV, NOEXEC, NOSUID, REC, SLAVE
from shim.namespaces import join, unshare
from shim.native import check

LARGEST = 1 << 20  # bytes of a pod's hosts or resolv.conf
# Bytes that this process may have of memory of its own (RLIMIT_DATA): with gRPC it has 85 MiB, most
# of it stacks that are hardly used, and more of those on a node of many cores.
MEMORY = 512 << 20
_FILES = ("/etc/hosts", "/etc/resolv.conf")
_DESK = "/tmp"  # what lies there is covered for a moment, not used
# The node's may name a resolver that is asked over a Unix socket, and answers for the node.
_NSSWITCH = {"/etc/nsswitch.conf": b"hosts: files dns\n"}
_PATIENCE = "timeout:2 attempts:2"


def enter(pid: int, spec: Mapping[str, Any]) -> None:
    """Go where the process is, with this thread and all that it will make.

    Its limit on memory is for good. Raises OSError, and RegistrationFailed for a hosts or
    resolv.conf of the pod that is none.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    join(f"/proc/{pid}/ns/net", "net")
    unshare("mnt")
    _mount("", "/", REC | SLAVE)
    _cover({**_files(spec), **_NSSWITCH})
    os.environ["RES_OPTIONS"] = _PATIENCE  # resolv.conf(5)


def _files(spec: Mapping[str, Any]) -> dict[str, bytes]:
    """What the pod has in place of the node's files."""
    sources = {m.get("destination"): m.get("source", "") for m in spec.get("mounts") or ()}
    found = {}
    for path in _FILES:
        source = sources.get(path)
        # `ctr run --net-host` gives it the node's own, which may be a link.
        if source and os.path.exists(path) and not _is_same(source, path):
            found[path] = _read(source, path)
    return found


def _is_same(source: str, path: str) -> bool:
    return os.path.exists(source) and os.path.samefile(source, path)


def _read(source: str, path: str) -> bytes:
    """A file that the container may have put there: no link, no device is opened."""
    fd = os.open(source, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        text = b""
        good = stat.S_ISREG(os.fstat(fd).st_mode)
        if good:
            with open(f"/proc/self/fd/{fd}", "rb") as file:
                text = file.read(LARGEST + 1)
    finally:
        os.close(fd)
    if not good or len(text) > LARGEST:
        reason = f"has more than {LARGEST} bytes" if good else "is no file"
        raise RegistrationFailed(f"the pod's {path} {reason}", hint="names are found with it")
    return text


def _cover(texts: Mapping[str, bytes]) -> None:
    """Put these over the files of that name, as far as there are any; nothing is written to disk.

    A tmpfs that lives as long as what is bound from it; nobody else sees it.
    """
    _mount("tmpfs", _DESK, NOSUID | NODEV | NOEXEC, "tmpfs")
    try:
        for number, (path, text) in enumerate(texts.items()):
            if not os.path.exists(path):
                continue
            with open(f"{_DESK}/{number}", "xb") as file:
                file.write(text)
            _mount(f"{_DESK}/{number}", path, BIND)
    finally:
        check(lib.thaw_umount(os.fsencode(_DESK), DETACH), "unmount", _DESK)


def _mount(source: str, target: str, flags: int, kind: str = "") -> None:
    result = lib.thaw_mount(
        ffi.NULL, os.fsencode(source), os.fsencode(target), kind.encode(), flags, ffi.NULL
    )
    check(result, f"mount {flags:#x}", target)


class _LookUp:
    """One question to the C library, which cannot be told when to give up."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self.found: list[str] = []
        self.reason = ""
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        try:
            answers = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self.found = [str(address[0]) for *_, address in answers]
        except OSError as error:
            self.reason = error.strerror or str(error)
        except UnicodeError:
            self.reason = "that is no name"


_looking: dict[tuple[str, int], _LookUp] = {}


def resolve(host: str, port: int, seconds: float) -> list[str]:
    """The addresses of a host, IPv4 first. Raises RegistrationFailed if there are none in time.

    What was not answered by then is waited for again by the next who asks: a thread for each
    attempt would add up to any number.
    """
    look = _looking.pop((host, port), None) or _LookUp(host, port)
    look.thread.join(seconds)
    if look.thread.is_alive():
        _looking[host, port] = look
    if not look.found:
        reason = look.reason or f"no answer within {seconds:.1f} s"
        raise RegistrationFailed(f"cannot find {host}: {reason}", hint="in the pod's own network")
    return sorted(dict.fromkeys(look.found), key=lambda address: ":" in address)


def host_and_port(text: str, port: int = 0) -> tuple[str, int]:
    """HOST, HOST:PORT or [ADDRESS]:PORT, taken apart; `port` is for one that has none."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, int(rest[1:]) if rest else port
    host, colon, rest = text.partition(":")
    return host, int(rest) if colon else port
