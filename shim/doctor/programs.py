"""The programs that do the work: CRIU, and the OCI runtime."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from shim.doctor.node import Node
from shim.doctor.verdict import Verdict, bad, ok
from shim.snapshot.host import criu_version, on_tmpfs

_INSTALL = "runtimeclass/install.sh brings one"
_COMPLAINTS = 3  # lines that are shown


def root(node: Node) -> Iterator[Verdict]:
    """CRIU, mounts and other users' snapshots need root."""
    if node.user:
        yield bad(
            f"this is user {node.user}", "run it as root: some lines below are wrong otherwise"
        )
    else:
        yield ok("this is root")


def criu(node: Node) -> Iterator[Verdict]:
    """CRIU is there and new enough; ThawError says what is not."""
    version = criu_version(node.config)
    yield ok(f"{version} at {_place(node, _criu(node))}")


def criu_check(node: Node) -> Iterator[Verdict]:
    """CRIU's own opinion of this kernel."""
    try:
        status, said = node.run(_criu(node), "check")
    except OSError as error:
        yield _nobody(_criu(node), error, _INSTALL)
        return
    if status:
        yield bad(
            _complaints(said) or f"`criu check` ended with {status}",
            "the kernel lacks what CRIU needs: see `criu check` and its documentation",
        )
    else:
        yield ok(said.splitlines()[-1] if said else "`criu check` has no complaints")


def criu_cache(node: Node) -> Iterator[Verdict]:
    """CRIU need not find out anew what this kernel can do whenever it dumps or restores."""
    # criu/kerndat.c trusts no other file system: what is there may be older than the kernel.
    if on_tmpfs(str(node.path("/run"))):
        yield ok("/run is a tmpfs: it keeps criu.kdat there")
    else:
        yield bad(
            "/run is not a tmpfs: CRIU probes the kernel at each restore (0.05 s and more)",
            "mount a tmpfs at /run, as systemd does",
        )


def network_lock(node: Node) -> Iterator[Verdict]:
    """CRIU can keep packets from a worker's connections while it is dumped, by nftables."""
    try:
        status, said = node.run(_criu(node), "check", "--feature", "network_lock_nftables")
    except OSError as error:
        yield _nobody(_criu(node), error, _INSTALL)
        return
    if status:
        yield bad(
            _complaints(said) or "this criu cannot lock connections with nftables",
            f"take a criu that is built with libnftables ({_INSTALL}), and a kernel with nf_tables",
        )
    else:
        yield ok("by nftables")


def runc(node: Node) -> Iterator[Verdict]:
    """The OCI runtime works and can restore."""
    name = node.config.text("BinaryName") or "runc"
    fix = "install runc, or set BinaryName in Thaw's configuration"
    try:
        status, said = node.run(name, "--version")
    except OSError as error:
        yield _nobody(name, error, fix)
        return
    if status:
        yield bad(f"`{name} --version` ended with {status}: {_complaints(said)}", fix)
        return
    version = said.partition("\n")[0]
    status, said = node.run(name, "restore", "--help")
    if status or "--image-path" not in said:
        yield bad(f"{version} has no `restore`", fix)
    else:
        yield ok(f"{version} at {_place(node, name)}")


def _nobody(program: str, error: OSError, fix: str) -> Verdict:
    return bad(f"cannot run {program}: {error.strerror}", fix)


def _criu(node: Node) -> str:
    return node.config.text("criu") or "criu"


def _place(node: Node, program: str) -> str:
    return shutil.which(program, path=node.env.get("PATH")) or program


def _complaints(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return "; ".join(
        [line for line in lines if "rror" in line or "arn" in line][:_COMPLAINTS] or lines[-1:]
    )
