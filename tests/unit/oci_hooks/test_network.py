"""The hook as a runtime runs it: a process that gets a container's state on stdin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes.namespaces import Namespace, Network
from fakes.settled import PATIENCE, eventually

from oci_hooks import steps
from oci_hooks.network import LIMITS, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")

CHECKOUT = Path(__file__).resolve().parents[3]


class Container:
    """A process in a pod's network namespace and a UTS namespace of its own, and its bundle."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self.folder = folder
        self.pods = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.spec: dict[str, Any] = {
            "hostname": "pods-own",
            "linux": {"namespaces": [{"type": "uts"}, {"type": "network"}]},
            "mounts": [{"destination": "/etc/hosts", "source": "/etc/hosts"}],
        }

    def enter(self, pod: Namespace | None) -> None:
        """In the pod's network, or this machine's."""
        there = ["nsenter", f"--net={pod.path}"] if pod is not None else []
        call = [*there, "unshare", "--uts", "sh", "-c", "echo; exec cat"]
        self.process = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def state(self) -> bytes:
        assert self.process is not None
        (self.folder / "config.json").write_text(json.dumps(self.spec))
        state = {"ociVersion": "1.0.2", "id": "c", "status": "created", "pid": self.process.pid}
        return json.dumps({**state, "bundle": str(self.folder)}).encode()

    def host_name(self) -> str:
        assert self.process is not None
        call = ["nsenter", "--uts", "--target", str(self.process.pid), "uname", "-n"]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()

    def end(self) -> None:
        if self.process is not None:
            self.process.communicate()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked hook has all its time for what is to be done, but where a wait is to be over."""
    for name in LIMITS:
        monkeypatch.setitem(LIMITS, name, PATIENCE)
    monkeypatch.setattr(steps, "_GRACE", PATIENCE)


class Ran:
    """What the hook said. A process of its own takes half a second to begin; a fork does not."""

    def __init__(self, state: bytes, *options: str, fork: bool = True) -> None:
        given = ("--timeout", str(2 * PATIENCE), *options)
        status, output, error = (forked if fork else executed)(state, given)
        self.status = status
        self.error = error.decode()
        report = json.loads(output) if output else {"steps": [], "warnings": []}
        self.details = {step["name"]: step["detail"] for step in report["steps"]}
        self.warnings: list[str] = report["warnings"]


def executed(state: bytes, options: Sequence[str]) -> tuple[int, bytes, bytes]:
    argv = [sys.executable, "-m", "oci_hooks.network", *options]
    done = subprocess.run(
        argv, input=state, capture_output=True, cwd=CHECKOUT, check=False, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


def forked(state: bytes, options: Sequence[str]) -> tuple[int, bytes, bytes]:
    streams = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    os.write(streams[0], state)
    os.lseek(streams[0], 0, os.SEEK_SET)
    pid = os.fork()
    if pid == 0:
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")
        sys.argv[1:] = options
        run()
    _, status = os.waitpid(pid, 0)
    found = [os.pread(fd, 1 << 20, 0) for fd in streams]
    for fd in streams:
        os.close(fd)
    return os.waitstatus_to_exitcode(status), found[1], found[2]


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


@pytest.fixture
def container(network: Network, tmp_path: Path) -> Iterator[Container]:
    made = Container(network, tmp_path)
    yield made
    made.end()


def neighbours(where: Namespace, device: str) -> dict[str, str]:
    """What is known of neighbours: a link address, or nothing."""
    lines = [line.split() for line in where.ip("neigh", "show", "dev", device).splitlines()]
    return {w[0]: w[w.index("lladdr") + 1] if "lladdr" in w else "" for w in lines}


def link_address(where: Namespace, device: str) -> str:
    words = where.ip("link", "show", "dev", device).split()
    return words[words.index("link/ether") + 1]


def test_a_pod_as_it_should_be(container: Container) -> None:
    """Its neighbours learn where its addresses are, and it forgets those that it has lost."""
    pod, outside = container.network.pod(20), container.network.outside
    container.enter(pod)
    wrong = ("lladdr", "02:00:00:00:00:99")
    for address in (pod.address4, pod.address6):
        outside.ip("neigh", "replace", address, *wrong, "dev", "pod20", "nud", "reachable")
    for address, state in (
        ("10.99.20.7", "stale"),
        ("fd99:20::7", "failed"),
        ("10.99.20.8", "permanent"),
        ("10.99.20.9", "reachable"),
    ):
        pod.ip("neigh", "add", address, *wrong, "dev", "eth0", "nud", state)
    track(pod, "10.0.0.5", "10.99.20.2")
    expected = ["--address", pod.address4, "--address", pod.address6, "--default-route", "4"]
    ran = Ran(container.state(), *expected, "--default-route", "6", "--old", "10.0.0.5", fork=False)
    assert (ran.status, ran.error, ran.warnings) == (0, "", [])
    link = link_address(pod, "eth0")
    for address in (pod.address4, pod.address6):  # the kernel may take it in a little later
        eventually(lambda at=address: neighbours(outside, "pod20")[at] == link)  # type: ignore[misc]
    assert neighbours(pod, "eth0").keys() >= {"10.99.20.8", "10.99.20.9"}
    assert not neighbours(pod, "eth0").keys() & {"10.99.20.7", "fd99:20::7"}
    assert tracked(pod) == {"10.99.20.2"}
    assert container.host_name() == "pods-own"
    assert list(ran.details.items()) == [
        ("namespace", ""),
        ("links", ""),
        ("addresses", ran.details["addresses"]),
        ("routes", "IPv4, IPv6"),
        ("neighbours", "2 dropped"),
        ("connections", "1 dropped"),
        ("announcement", f"{pod.address4}, {pod.address6}"),
        ("host name", "pods-own"),
        ("files", ""),
    ]


def track(pod: Namespace, *sources: str) -> None:
    """Let the kernel know of connections from these addresses."""

    def add() -> None:
        from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

        with NFCTSocket() as connections:
            for one in sources:
                ends = {"proto": 6, "sport": 999, "dport": 80}
                back = {"proto": 6, "sport": 80, "dport": 999}
                connections.entry(
                    "add",
                    timeout=100,
                    tuple_orig=NFCTAttrTuple(saddr=one, daddr="10.7.7.7", **ends),
                    tuple_reply=NFCTAttrTuple(saddr="10.7.7.7", daddr=one, **back),
                )

    pod.within(add)


def tracked(pod: Namespace) -> set[str]:
    def dump() -> set[str]:
        from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

        with NFCTSocket() as connections:
            found = list(connections.dump())
        ends = [m.get_attr("CTA_TUPLE_ORIG").get_attr("CTA_TUPLE_IP") for m in found]
        return {end.get_attr("CTA_IP_V4_SRC") for end in ends}

    return pod.within(dump)


def test_links_that_are_down(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their routes are gone, which only matters if they were there before."""
    container.enter(container.network.pod(21, up=False))
    ran = Ran(container.state())
    assert (ran.status, ran.error) == (0, "")
    assert ran.details["links"] == "eth0 was down"
    assert ran.warnings == [f"there is no default route for IPv{n}" for n in (4, 6)]
    monkeypatch.setitem(LIMITS, "routes", 0.5)
    missed = Ran(container.state(), "--default-route", "4")
    assert (missed.status, missed.details) == (1, {})
    assert missed.error == "thaw-hook-network: routes: no default route for IPv4\n"


def test_addresses_that_are_not_usable_yet(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = container.network.pod(22, dad=True)
    container.enter(pod)
    pod.within(lambda: Path("/proc/sys/net/ipv6/conf/eth0/dad_transmits").write_text("60"))
    pod.ip("link", "set", "eth0", "down")
    pod.ip("addr", "replace", f"{pod.address6}/64", "dev", "eth0")
    pod.ip("link", "set", "eth0", "up")
    with monkeypatch.context() as patch:
        patch.setitem(LIMITS, "addresses", 0.5)
        waited = Ran(container.state(), "--dad", "wait")
    assert waited.status == 1
    assert f"addresses: {pod.address6}" in waited.error
    assert "is not usable yet" in waited.error
    ran = Ran(container.state())
    assert (ran.status, ran.error) == (0, "")
    assert "tentative" not in pod.ip("-6", "addr", "show", "scope", "global")
    assert pod.address6 in pod.ip("-6", "addr", "show", "scope", "global")


def test_an_address_that_is_missing(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, "addresses", 0.5)
    container.enter(container.network.pod(23))
    ran = Ran(container.state(), "--address", "10.1.1.1")
    assert ran.status == 1
    assert ran.error == "thaw-hook-network: addresses: 10.1.1.1 is not there\n"
    assert container.host_name() != "pods-own", "nothing is done after that"


def test_names_and_files(container: Container, tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").touch()
    container.spec["mounts"] += [
        {"destination": "/etc/resolv.conf", "source": str(tmp_path / "resolv.conf")},
        {"destination": "/etc/hostname/", "source": "/nowhere"},
        {"destination": "/data", "source": "/nowhere"},
    ]
    container.enter(container.network.pod(24))
    ran = Ran(container.state(), "--host-name", "given")
    assert ran.status == 0
    assert container.host_name() == "given"
    assert ran.warnings == [
        f"{path} in the container is not the one of its spec"
        for path in ("/etc/hostname", "/etc/resolv.conf")
    ]


def test_what_is_the_hosts_is_not_touched(container: Container) -> None:
    container.spec["linux"] = {"namespaces": []}
    pod = container.network.pod(25, up=False)
    container.enter(pod)
    before = container.host_name()
    ran = Ran(container.state())
    assert ran.details == {"namespace": "", "host name": "", "files": ""}
    assert ran.warnings == ["the container has the host's network, which is left as it is"]
    assert container.host_name() == before
    assert "LOWER_UP" not in pod.ip("link", "show", "eth0")


def test_a_pod_on_the_hosts_network(container: Container) -> None:
    """CRI gives its containers a path, too: its sandbox's, which is the host's."""
    container.spec["linux"]["namespaces"][1]["path"] = "/proc/1/ns/net"
    container.enter(None)
    ran = Ran(container.state())
    assert set(ran.details) == {"namespace", "host name", "files"}
    assert "the container has the host's network, which is left as it is" in ran.warnings


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (b"", "the container's state cannot be read: nothing came"),
        (b'{"ociVersion": "1", "id": "c", "status": "stopped", "bundle": "/b", "pid": 0}',
         "the container 'c' has no process"),
        (b'{"ociVersion": "1", "id": "c", "status": "running", "bundle": "/b", "pid": 4194303}',
         "namespace: cannot read /b/config.json"),
    ],
)  # fmt: skip
def test_what_is_no_container(state: bytes, said: str) -> None:
    ran = Ran(state, fork=bool(state))
    assert ran.status == 1
    assert ran.error.startswith(f"thaw-hook-network: {said}")
    assert ran.error.count("\n") == 1


def test_a_process_that_is_gone(container: Container) -> None:
    container.enter(container.network.pod(26))
    state = container.state()
    container.end()
    ran = Ran(state)
    assert ran.status == 1
    assert ran.error.startswith("thaw-hook-network: namespace: [Errno 2]")
