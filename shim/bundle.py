"""A bundle: the folder that containerd made for one container, and what may be changed in it.

`config.json` stays containerd's but for three things. One is an annotation, `org.criu.config`: runc
remembers it when the container is *created* and CRIU obeys it when the container is dumped or
restored; its `action-script` runs as root on the host. So every container gets ours, and one that
comes from the pod is dropped. The others are the control directory and what a container needs to
be snapshotted; see task/contract.py. For a restore there may be a fourth: task/adjusting.py.
"""

from __future__ import annotations

import os

from shim.annotations import SANDBOX_ID
from shim.errors import InvalidArgument
from shim.lean import jsons

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CRIU_CONFIG = "org.criu.config"


class Bundle:
    """Paths of a bundle and its parsed OCI spec."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.config = f"{path}/config.json"
        self.rootfs = f"{path}/rootfs"
        self.log = f"{path}/log.json"
        self.pid_file = f"{path}/init.pid"
        self.options = f"{path}/options.json"
        self.runtime = f"{path}/runtime"
        self.marker = f"{path}/thaw.live"  # exists while `delete` would have something to remove

    def forget(self) -> None:
        """Nothing is left to remove: `delete` need not look."""
        try:
            os.unlink(self.marker)
        except FileNotFoundError:
            pass

    def exec_pid_file(self, exec_id: str) -> str:
        """Where runc writes the pid of an exec'd process."""
        return f"{self.path}/{exec_id}.pid"

    def spec(self) -> dict[str, Any]:
        """The OCI spec. Raises InvalidArgument if it cannot be read."""
        try:
            with open(self.config, "rb") as file:
                spec = jsons.loads(file.read())
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"cannot read {self.config}: {error}") from error
        if not isinstance(spec, dict):
            raise InvalidArgument(f"{self.config} is not a JSON object")
        return spec

    def save(self, spec: dict[str, Any]) -> None:
        """Write the OCI spec."""
        write_atomically(self.config, jsons.dumps(spec))


def steer_criu(spec: dict[str, Any], criu_config: str) -> None:
    """Make runc use our CRIU configuration for this container, and no other."""
    spec["annotations"] = {**annotations_of(spec), CRIU_CONFIG: criu_config}


def write_atomically(path: str, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` by one rename, so that a reader sees the old content or the new."""
    temporary = f"{os.path.dirname(path) or '.'}/.{os.path.basename(path)}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_pid(path: str) -> int:
    """The pid in a pid file, or 0 if there is none."""
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def annotations_of(spec: dict[str, Any]) -> dict[str, str]:
    """The spec's annotations; empty if it has none."""
    annotations: dict[str, str] = spec.get("annotations") or {}
    return annotations


def hostname_of(spec: dict[str, Any], bundle: Bundle) -> str:
    """The host name that the container's spec gives, or its sandbox's; empty if neither does."""
    own: str = spec.get("hostname", "")
    sandbox = annotations_of(spec).get(SANDBOX_ID, "")
    if own or not sandbox:
        return own
    name: str = Bundle(f"{os.path.dirname(bundle.path)}/{sandbox}").spec().get("hostname", "")
    return name


def namespace_path(spec: dict[str, Any], kind: str) -> str | None:
    """The path of a namespace to join, "" for a new one, None if the host's is shared."""
    for namespace in (spec.get("linux") or {}).get("namespaces") or []:
        if namespace.get("type") == kind:
            path: str = namespace.get("path", "")
            return path
    return None
