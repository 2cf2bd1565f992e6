"""What a restored worker's network needs: the hold, and the hook."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

from oci_hooks import hold as holding
from shim.doctor.node import Node
from shim.doctor.verdict import Verdict, absent, bad, ok
from shim.errors import ThawError
from shim.namespaces import in_thread, unshare
from shim.restore.hook import program_of


def hold(_node: Node) -> Iterator[Verdict]:
    """A pod's network can be held until its worker has proved itself: tried in a new one."""
    try:
        in_thread(_try)
    except (OSError, ThawError) as error:
        fix = "the kernel needs nf_tables with the inet family (CONFIG_NF_TABLES_INET), and root"
        yield bad(f"nothing can be held: {error}", fix)
    else:
        yield ok("a pod can be held by nftables")


def _try() -> None:
    unshare("net")
    namespace = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"
    holding.hold(namespace)
    holding.release(namespace)


def hook(node: Node) -> Iterator[Verdict]:
    """The program that is run after each restore is there."""
    program = program_of(node.config)
    if not program:
        yield absent(
            "no pod's network is looked at after a restore", "set network.hook, if it shall be"
        )
    elif os.access(program, os.X_OK) and not os.path.isdir(program):
        yield ok(program)
    else:
        yield bad(f"cannot run {program}", "see network.hook in the configuration")
