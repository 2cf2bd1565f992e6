"""Registration from where the pod is: its network, its names. In a process, as an engine is one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from bed.etcd import Server
from fakes.inmates import inmate
from fakes.namespaces import Namespace, Network
from fakes.pod import FAKES
from fakes.settled import PATIENCE, eventually
from fakes.talkers import answer, talker

from shim.annotations import REGISTER, REGISTER_FAILURE, REGISTER_TIMEOUT
from shim.errors import RegistrationFailed
from shim.registration import place

CHECKOUT = Path(__file__).resolve().parents[3]
KNOWN = {"pod": "p", "ips": ["10.0.0.1"], "generation": "g"}


class Registrant:
    """The process, asked line by line."""

    def __init__(self, pid: int, tmp_path: Path) -> None:
        self._pid = pid
        self.hosts = tmp_path / "hosts"
        argv = [sys.executable, str(FAKES / "registrant.py"), str(CHECKOUT)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    @property
    def pid(self) -> int:
        return self._process.pid

    def register(self, where: str, hosts: str = "", **notes: str) -> dict[str, Any]:
        if not os.path.lexists(self.hosts):
            self.hosts.write_text(hosts)
        mounts = [{"destination": "/etc/hosts", "source": str(self.hosts)}]
        spec = {
            "annotations": {REGISTER: where, REGISTER_TIMEOUT: str(PATIENCE), **notes},
            "mounts": mounts,
        }
        return self.ask(verb="register", spec=spec, pid=self._pid, identity=KNOWN)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def leave(self) -> None:
        """As when the daemon is gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(2 * PATIENCE)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        made.pod(7)
        yield made


@pytest.fixture
def pod(network: Network) -> Namespace:
    return network.pods[7]


@pytest.fixture
def registrant(pod: Namespace, tmp_path: Path) -> Iterator[Registrant]:
    with inmate(pod.path) as process:
        made = Registrant(process.pid, tmp_path)
        yield made
        made.leave()


def outside(network: Network) -> socket.socket:
    return network.outside.within(lambda: socket.create_server(("10.99.7.1", 0)))


def test_a_callback(network: Network, registrant: Registrant) -> None:
    """Under a name that only the pod knows, at an address that only the pod reaches."""
    with talker(answer(200), outside(network)) as server:
        where = f"http://registry.infra:{server.port}/{{pod}}"
        assert registrant.register(where, "10.99.7.1 registry.infra\n") == {
            "registered": True,
            "because": "",
        }
        assert registrant.ask(verb="deregister", spec={}, seconds=PATIENCE)["because"] == ""
    assert [heard[:6] for heard in server.heard] == [b"POST /", b"DELETE"]
    body = json.loads(server.heard[0].partition(b"\r\n\r\n")[2])
    assert body == KNOWN


def test_the_nodes_own_servers_are_out_of_reach(registrant: Registrant) -> None:
    with talker(answer(200)) as ours:
        found = registrant.register(f"http://127.0.0.1:{ours.port}/", **{REGISTER_FAILURE: "fail"})
    assert found["error"] == "RegistrationFailed"
    assert "nobody listens" in found["because"]
    assert ours.heard == []


@pytest.mark.parametrize("kind", ["sparse", "fifo", "link", "folder"])
def test_a_file_of_the_pod_that_is_none(registrant: Registrant, kind: str) -> None:
    """The container can put there what it likes; a C library that reads it would never end."""
    hosts = registrant.hosts
    if kind == "sparse":
        hosts.touch()
        os.truncate(hosts, place.LARGEST + 1)
    elif kind == "fifo":
        os.mkfifo(hosts)
    elif kind == "link":
        hosts.symlink_to("/etc/passwd")
    else:
        hosts.mkdir()
    found = registrant.register("http://registry.infra:1/")
    assert found.get("error", found) == "RegistrationFailed"
    assert "/etc/hosts" in found["because"]


def test_the_nodes_own_files(tmp_path: Path) -> None:
    """`ctr run --net-host` names them, and they may be links: they are there already."""
    (tmp_path / "hosts").symlink_to("/etc/hosts")
    mounts = [{"destination": "/etc/hosts", "source": str(tmp_path / "hosts")}]
    assert place._files({"mounts": mounts}) == {}


def test_what_the_container_writes_later(network: Network, registrant: Registrant) -> None:
    """It was a copy that was taken; and there is a limit, should the library want more."""
    with talker(answer(200), outside(network)) as server:
        where = f"http://registry.infra:{server.port}/"
        assert registrant.register(where, "10.99.7.1 registry.infra\n")["registered"]
        os.truncate(registrant.hosts, 1 << 40)
        assert registrant.ask(verb="deregister", spec={}, seconds=PATIENCE)["because"] == ""
    limits = Path(f"/proc/{registrant.pid}/limits").read_text().splitlines()
    [limit] = [line.split() for line in limits if line.startswith("Max data size")]
    assert limit[3:5] == [str(place.MEMORY)] * 2
    mounts = Path(f"/proc/{registrant.pid}/mountinfo").read_text()
    assert [line for line in mounts.splitlines() if line.split()[4] == "/tmp"] == [
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split()[4] == "/tmp"
    ]


def test_one_question_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library waits for whom the pod names: no attempt leaves another thread behind."""
    asked, go_on = [], threading.Event()

    def slow(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        assert go_on.wait(PATIENCE)
        return [(0, 0, 0, "", ("10.0.0.1", 1))]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    for _ in range(3):
        with pytest.raises(RegistrationFailed, match="no answer within"):
            place.resolve("slow.infra", 1, 0.01)
    go_on.set()
    assert place.resolve("slow.infra", 1, PATIENCE) == ["10.0.0.1"]
    assert asked == ["slow.infra"]
    place.resolve("slow.infra", 1, PATIENCE)
    assert asked == ["slow.infra"] * 2, "an answer is not kept"


def test_no_name() -> None:
    with pytest.raises(RegistrationFailed, match=r"cannot find a\.\.b: that is no name"):
        place.resolve("a..b", 1, 10)


def test_who_is_left_alone_deregisters(network: Network, pod: Namespace, tmp_path: Path) -> None:
    with talker(answer(200), outside(network)) as server, inmate(pod.path) as process:
        registrant = Registrant(process.pid, tmp_path)
        registrant.register(f"http://10.99.7.1:{server.port}/")
        registrant.leave()
    assert [heard[:6] for heard in server.heard] == [b"POST /", b"DELETE"]


def test_etcd(network: Network, registrant: Registrant, tmp_path: Path) -> None:
    launcher: Sequence[str] = ("nsenter", f"--net={network.outside.path}")
    network.outside.ip("link", "set", "lo", "up")
    with Server(tmp_path, "10.99.7.1", launcher, (2379, 2380)) as server:
        found = registrant.register("etcd:etcd.infra:2379/w/{pod}", "10.99.7.1 etcd.infra\n")
        if not found["registered"]:  # etcd takes a while to start
            assert json.loads(_line(registrant))["event"] in ("failed", "registered")
        network.outside.within(lambda: eventually(lambda: _is_there(server, "w/p")))
        registrant.ask(verb="deregister", spec={}, seconds=PATIENCE)
        assert network.outside.within(lambda: server.read("w/p")) is None


def _line(registrant: Registrant) -> bytes:
    stdout = registrant._process.stdout
    assert stdout is not None
    return stdout.readline()


def _is_there(server: Server, key: str) -> bool:
    try:
        return bool(server.read(key))
    except OSError:
        return False
