"""A pod's host name, which all its containers share and which a restore must not change.

CRIU joins the pod's UTS namespace and then writes the dumped name into it.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from shim.annotations import SANDBOX_ID
from shim.bundle import Bundle, annotations_of
from shim.namespaces import inside


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
    inside(namespace, "uts", lambda: socket.sethostname(name))
