"""A lane's pod network: a bridge of its own with a private subnet, made by Debian's CNI plugins.

Pods reach the host and each other over the bridge; nothing is translated or published, so no packet
filter is needed. CNI makes the bridge with the first pod; the lane removes it.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterable
from pathlib import Path

SUBNETS = [f"10.213.{third}.0/24" for third in range(1, 255)]


def free_subnet() -> str:
    """A subnet that no address of this machine lies in; random, as lanes start side by side."""
    command = ["ip", "-4", "-o", "addr"]
    taken = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return secrets.choice([net for net in SUBNETS if net.removesuffix("0/24") not in taken])


def write_configuration(folder: Path, name: str, bridge: str, subnet: str, leases: Path) -> None:
    """Write the only CNI configuration that the lane's containerd sees."""
    address_management = {
        "type": "host-local",
        "dataDir": str(leases),
        "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugin = {"type": "bridge", "bridge": bridge, "isGateway": True, "ipam": address_management}
    folder.mkdir(parents=True, exist_ok=True)
    network = {"cniVersion": "0.4.0", "name": name, "plugins": [plugin]}
    (folder / "10-bed.conflist").write_text(json.dumps(network, indent=2))


def remove_bridges(names: Iterable[str]) -> None:
    """Remove those of the named bridges that exist."""
    for name in names:
        if Path("/sys/class/net", name).exists():
            subprocess.run(["ip", "link", "delete", name], check=True)
