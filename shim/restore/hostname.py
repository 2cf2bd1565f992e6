"""A pod's host name, which all its containers share and which a restore must not change.

CRIU joins the pod's UTS namespace and then writes the dumped name into it.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from typing import Any

from shim.annotations import SANDBOX_ID
from shim.bundle import Bundle, annotations_of

_CLONE_NEWUTS = 0x04000000


def hostname_of(spec: dict[str, Any], bundle: Bundle) -> str:
    """The name that the container's spec gives, or its sandbox's; empty if neither does."""
    own: str = spec.get("hostname", "")
    sandbox = annotations_of(dict(spec)).get(SANDBOX_ID, "")
    if own or not sandbox:
        return own
    name: str = Bundle(f"{os.path.dirname(bundle.path)}/{sandbox}").spec().get("hostname", "")
    return name


def set_hostname(namespace: str, name: str) -> None:
    """Set the host name of the UTS namespace at a path. Raises OSError."""
    errors: list[OSError] = []

    def enter() -> None:  # in a thread of its own: the others stay where they are
        try:
            _join(namespace)
            socket.sethostname(name)
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    for error in errors:
        raise error


def _join(namespace: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(fd, _CLONE_NEWUTS):
            number = ctypes.get_errno()
            raise OSError(number, f"setns: {os.strerror(number)}", namespace)
    finally:
        os.close(fd)
