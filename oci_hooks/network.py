"""thaw-hook-network: gives a restored container the network identity of its new pod.

It is an OCI hook: the container's state comes on stdin, and the exit status is 0, or 1 with one
line on stderr. In the network namespace of the container's process it brings links up, makes sure
of addresses and default routes, drops stale neighbours and connections, and announces the addresses
to the neighbours; then it gives the container its host name, and looks whether /etc/hosts and the
like are the new pod's. A container with the host's network or host name is not touched there.

Nearly all of its time is the import of pyroute2, and it waits for the state afterwards. A caller in
a hurry starts it early, with a pipe for stdin, and writes the state when the processes are there;
when that pipe is closed with nothing in it, the hook ends with status 1. On stdout it says, in one
line of JSON, what it has done and how long each step took: with that line all is done, but that the
announcements are then repeated, and a packet socket is closed, for which the kernel takes 10 ms.

Left to others: keeping the network shut until the worker has proved itself (hold), and sockets that
are bound to old addresses, which are moved before CRIU reads them (shim.restore.addresses).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from oci_hooks import announcing, interfaces, state
from oci_hooks.announcing import Announcement
from oci_hooks.interfaces import Interfaces
from oci_hooks.state import State
from oci_hooks.steps import Report, Step, Steps
from shim.bundle import Bundle, hostname_of, namespace_path
from shim.errors import ThawError
from shim.namespaces import join, unshare
from shim.restore.hostname import set_hostname

if TYPE_CHECKING:
    from argparse import Namespace as Options

PROGRAM = "thaw-hook-network"
# Seconds that each step may take; all of them together have --timeout.
LIMITS = {
    "namespace": 1.0,
    "links": 2.0,
    "addresses": 3.0,  # duplicate address detection takes up to two
    "routes": 1.0,
    "neighbours": 1.0,
    "connections": 1.0,
    "announcement": 1.0,
    "host name": 1.0,
    "files": 1.0,
}
FILES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
_BETWEEN = 0.002  # seconds from one announcement to its repetition


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the hook; its exit status."""
    options = _options(arguments)
    try:
        home = os.stat("/proc/self/ns/net")  # the runtime's, and the host's
        _warm_up()
        report, announcement = adopt(state.parse(sys.stdin.buffer.read()), options, home)
    except (ThawError, OSError, ImportError) as error:
        text = " ".join(str(error).split())
        print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)
        return 1
    with suppress(OSError):  # nobody wants to know
        print(json.dumps(asdict(report)), flush=True)
    with suppress(OSError):  # the first one was sent
        for _ in range(options.announcements - 1):
            time.sleep(_BETWEEN)
            announcement.send(LIMITS["announcement"])
    announcement.close()
    return 0


def run() -> None:
    """The program. It ends without tidying up after itself: that takes 20 ms."""
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def adopt(container: State, options: Options, home: os.stat_result) -> tuple[Report, Announcement]:
    """Do all steps for a container; this process ends up in its network namespace.

    `home` is the host's network namespace, which is left as it is. Answers what was done, and what
    was announced, to be announced again. Raises ThawError, which begins with the name of the step
    that failed.
    """
    from pyroute2 import IPRoute

    steps = Steps(options.timeout)
    bundle = Bundle(container.bundle)
    with steps.step("namespace", LIMITS["namespace"]) as step:
        spec = bundle.spec()
        network = f"/proc/{container.pid}/ns/net"
        # A pod on the host's network may name a path for it, too: its sandbox's.
        own = namespace_path(spec, "network") is not None
        own = own and not os.path.samestat(os.stat(network), home)
        if own:
            join(network, "net")
    announcement = Announcement({})
    if own:
        with IPRoute() as route:
            announcement = _network(steps, Interfaces(route), options)
    else:
        steps.warn("the container has the host's network, which is left as it is")
    with steps.step("host name", LIMITS["host name"]) as step:
        step.detail = _name_host(container, options.host_name or hostname_of(spec, bundle), spec)
    with steps.step("files", LIMITS["files"]) as step:
        odd = _foreign_files(container, spec)
        step.detail = ", ".join(odd)
        for path in odd:
            steps.warn(f"{path} in the container is not the one of its spec")
    return steps.report, announcement


def _network(steps: Steps, here: Interfaces, options: Options) -> Announcement:
    with steps.step("links", LIMITS["links"]) as step:
        here.bring_up(step)
    with steps.step("addresses", LIMITS["addresses"]) as step:
        here.settle(step, options.address, wait=options.dad == "wait")
    with steps.step("routes", LIMITS["routes"]) as step:
        for odd in here.check_routes(step, options.default_route):
            steps.warn(odd)
    with steps.step("neighbours", LIMITS["neighbours"]) as step:
        here.forget_neighbours(step)
    if options.old:
        with steps.step("connections", LIMITS["connections"]) as step:
            if why := interfaces.forget_connections(step, options.old):
                steps.warn(why)
    with steps.step("announcement", LIMITS["announcement"]) as step:
        announcement = _announcement(step, here)
        announcement.send(LIMITS["announcement"])
    return announcement


def _announcement(step: Step, here: Interfaces) -> Announcement:
    """Every address of every link whose neighbours are looked for."""
    packets: dict[str, list[bytes]] = {}
    announced = []
    for held in here.addresses:
        link = here.links.get(held.index)
        if link is not None and link.talks and interfaces.is_announced(held):
            packets.setdefault(link.name, []).extend(announcing.frames(link.address, held.address))
            announced.append(str(held.address))
    step.detail = ", ".join(announced)
    return Announcement(packets)


def _name_host(container: State, name: str, spec: Mapping[str, Any]) -> str:
    """Set the pod's host name, which CRIU has overwritten; what it is, or nothing if it stays."""
    if namespace_path(dict(spec), "uts") is None:
        return ""  # it is the host's
    if name:
        set_hostname(f"/proc/{container.pid}/ns/uts", name)
    return name


def _foreign_files(container: State, spec: Mapping[str, Any]) -> list[str]:
    """The files which kubelet mounts and that are others in the container than in its spec."""
    sources: dict[str, str] = {
        os.path.normpath(mount.get("destination", "")): mount.get("source", "")
        for mount in spec.get("mounts") or []
    }
    return [path for path in FILES if sources.get(path) and _differ(container, sources[path], path)]


def _differ(container: State, source: str, path: str) -> bool:
    try:
        # An absolute link in the container would lead to a file of the host's: not followed.
        there = os.stat(f"/proc/{container.pid}/root{path}", follow_symlinks=False)
        return not os.path.samestat(os.stat(source), there)
    except OSError:
        return True


def _warm_up() -> None:
    """Import what takes long, and use it once: the first use costs as much as ten.

    In an empty network namespace: a node may have thousands of routes.
    """
    import pyroute2.netlink.nfnetlink.nfctsocket  # noqa: F401
    from pyroute2 import IPRoute

    unshare("net")
    with IPRoute() as route:
        route.link("set", index=1, state="up")  # the loopback, which gives addresses and routes
        here = Interfaces(route)
        here.look()
        here.routed()


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(PROGRAM, description="Network identity for a restored pod.")
    add: Any = parser.add_argument
    add("--timeout", type=float, default=5.0, help="seconds for everything (default: 5)")
    add(
        "--dad",
        choices=("skip", "wait"),
        default="skip",
        help="IPv6 addresses under duplicate address detection: use them now, or wait for its end",
    )
    add("--address", type=ip_address, action="append", default=[], help="must be there")
    add(
        "--default-route",
        type=int,
        choices=(4, 6),
        action="append",
        default=[],
        help="the family of a default route that must be there",
    )
    add(
        "--old",
        type=ip_address,
        action="append",
        default=[],
        help="an address of the pod before: connections of it are forgotten",
    )
    add("--host-name", default="", help="instead of the one in the bundle's spec")
    add("--announcements", type=int, default=3, help="how often (default: 3)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run()
