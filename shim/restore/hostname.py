"""A pod's host name, which all its containers share and which a restore must not change.

CRIU joins the pod's UTS namespace and then writes the dumped name into it.
"""

from __future__ import annotations

import socket

from shim.namespaces import inside


def set_hostname(namespace: str, name: str) -> None:
    """Set the host name of the UTS namespace at a path. Raises OSError."""
    inside(namespace, "uts", lambda: socket.sethostname(name))
