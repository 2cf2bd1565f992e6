"""A lane's pod network: a bridge of its own with private subnets, made by Debian's CNI plugins.

Pods reach the host and each other over the bridge, by IPv4 and, if this kernel has it, by IPv6;
nothing is translated or published, so no packet filter is needed. The bridge is the lane's own,
and CNI only uses it: as the maker of a gateway, CNI's plugin would turn on forwarding for the whole
machine, and leave it on.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

SUBNETS = [f"10.213.{third}.0/24" for third in range(1, 255)]
# Unique local addresses (RFC 4193); the fifth group is the third octet of the IPv4 subnet.
_PREFIX6 = "fd5b:1c9e:7a30"
_DISABLED = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")


class Subnet(NamedTuple):
    """A range of addresses, and the bridge's own in it."""

    range: str
    gateway: str
    length: int
    everything: str

    @property
    def version(self) -> int:
        return 6 if ":" in self.range else 4


def has_ipv6() -> bool:
    """Whether new interfaces of this machine get IPv6."""
    return _DISABLED.exists() and _DISABLED.read_text().strip() == "0"


def free_subnets() -> list[Subnet]:
    """Subnets that no address of this machine lies in; random, as lanes start side by side."""
    command = ["ip", "-4", "-o", "addr"]
    taken = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    chosen = secrets.choice([net for net in SUBNETS if net.removesuffix("0/24") not in taken])
    head = chosen.removesuffix("0/24")
    four = Subnet(chosen, f"{head}1", 24, "0.0.0.0/0")
    head6 = f"{_PREFIX6}:{int(head.split('.')[2]):x}::"
    six = Subnet(f"{head6}/64", f"{head6}1", 64, "::/0")
    return [four, six] if has_ipv6() else [four]


def make_bridge(name: str, subnets: Sequence[Subnet]) -> None:
    """Make the bridge, with the gateways' addresses."""
    # Without one of its own it has a port's, so that pods' gateway moved with every pod.
    own = ":".join(["02", *(f"{byte:02x}" for byte in secrets.token_bytes(5))])
    _ip("link", "add", name, "address", own, "type", "bridge")
    for subnet in subnets:
        # Nobody else has it, and a bridge without pods has no carrier to ask by.
        unasked = ["nodad"] if subnet.version == 6 else []
        _ip("addr", "add", f"{subnet.gateway}/{subnet.length}", "dev", name, *unasked)
    _ip("link", "set", name, "up")


def write_configuration(
    folder: Path, name: str, bridge: str, subnets: Sequence[Subnet], leases: Path
) -> None:
    """Write the only CNI configuration that the lane's containerd sees."""
    address_management = {
        "type": "host-local",
        "dataDir": str(leases),
        "ranges": [[{"subnet": subnet.range, "gateway": subnet.gateway}] for subnet in subnets],
        "routes": [{"dst": subnet.everything} for subnet in subnets],
    }
    plugin = {"type": "bridge", "bridge": bridge, "ipam": address_management}
    folder.mkdir(parents=True, exist_ok=True)
    network = {"cniVersion": "0.4.0", "name": name, "plugins": [plugin]}
    (folder / "10-bed.conflist").write_text(json.dumps(network, indent=2))


def remove_bridges(names: Iterable[str]) -> None:
    """Remove those of the named bridges that exist."""
    for name in names:
        if Path("/sys/class/net", name).exists():
            _ip("link", "delete", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
