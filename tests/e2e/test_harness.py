"""The bed itself, against containerd's own runc shim: the tests of Thaw lean on what these show."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

import bed
import pytest
from bed.dismantle import BRIDGE, sweep
from bed.images import BUSYBOX_IMAGE, LAYERS, LAYERS_IMAGE
from bed.lane import Lane
from bed.leaks import holdings, processes, shim_sockets
from bed.network import has_ipv6
from bed.pod import Pod
from workers import executed

SLEEP = ["sleep", "1000"]
ENDS_WITH_SEVEN = ["sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"]


def test_a_pod_has_an_address_that_answers(lane: Lane) -> None:
    with lane.pod("web", handler="runc") as pod:
        serve = "mkdir /www; echo hello > /www/index.html; exec httpd -f -v -p 8000 -h /www"
        server = pod.container("app", BUSYBOX_IMAGE, ["sh", "-c", serve]).start()
        wait = "until wget -q -O - http://127.0.0.1:8000/; do sleep 0.05; done"
        assert server.exec(["sh", "-c", wait]).stdout == "hello\n"
        for address in [pod.ip, pod.ip6] if has_ipv6() else [pod.ip]:
            connection = HTTPConnection(address, 8000, timeout=60)
            connection.request("GET", "/index.html")
            assert connection.getresponse().read() == b"hello\n"
            connection.close()


def test_exec_gives_output_and_exit_code(lane: Lane) -> None:
    with lane.pod("exec", handler="runc") as pod:
        container = pod.container("app", BUSYBOX_IMAGE, SLEEP, env={"COLOUR": "red"}).start()
        done = container.exec(["sh", "-c", "echo $COLOUR; echo no >&2; exit 3"])
        assert done == (3, "red\n", "no\n")
        assert container.exec(["hostname"]).stdout == "exec\n"


def test_a_stopped_container_has_its_exit_code_and_log(lane: Lane) -> None:
    with lane.pod("stop", handler="runc") as pod:
        container = pod.container("app", BUSYBOX_IMAGE, ENDS_WITH_SEVEN).start()
        container.wait_for_log("ready")
        container.stop()
        assert container.wait() == 7
        assert container.log() == "ready\n"


def test_stats_and_update(lane: Lane) -> None:
    with lane.pod("stats", handler="runc") as pod:
        container = pod.container("app", BUSYBOX_IMAGE, SLEEP).start()
        assert container.stats().memory.working_set_bytes.value > 0
        container.update(memory_limit_in_bytes=64 << 20)


def test_a_hundred_layers(lane: Lane) -> None:
    with lane.pod("layers", handler="runc") as pod:
        command = ["sh", "-c", "ls -d /layer-* | wc -l"]
        container = pod.container("app", LAYERS_IMAGE, command).start()
        assert container.wait() == 0
        # It may come after the end: it goes by way of containerd's logger, which nobody waits for.
        assert container.wait_for_log("\n").strip() == str(LAYERS - 1)


def test_ctr_runs_a_container(lane: Lane) -> None:
    arguments = ["run", "--rm", *lane.runtime_arguments("runc"), BUSYBOX_IMAGE, "once"]
    assert lane.ctr(*arguments, "echo", "hello").stdout == "hello\n"


def test_a_leak_is_seen(lane: Lane) -> None:
    before = lane.holdings()
    pod = lane.run_pod("forgotten", handler="runc")
    executed(pod.container("app", BUSYBOX_IMAGE, SLEEP).start(), "sleep")
    found = lane.leaks(before, seconds=0)
    assert {"processes", "mounts", "cgroups", "interfaces", "files"} <= set(found)
    assert any("sleep 1000" in line for line in found["processes"])
    pod.remove()
    assert not lane.leaks(before)


def test_what_a_killed_run_left_is_swept() -> None:
    program = (
        "from bed.lane import Lane; import time; lane = Lane('2.x'); lane.start();"
        "lane.import_images(layers=False, ctr=False); pod = lane.run_pod('orphan', handler='runc');"
        f"pod.container('app', '{BUSYBOX_IMAGE}', ['sleep', '1000']).start();"
        "print(lane.places.folder, flush=True); time.sleep(1000)"
    )
    forwarding = machine_forwards()
    environment = {**os.environ, "PYTHONPATH": str(Path(bed.__file__).parents[1])}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout
        folder = Path(owner.stdout.readline().strip())
        owner.kill()
    bridge = (folder / BRIDGE).read_text()
    assert processes(folder)
    sockets = list(shim_sockets(processes(folder)))
    assert sockets
    sweep(folder.parent)
    assert not folder.exists()
    assert not any(holdings(folder, bridge))
    assert not any(socket.exists() for socket in sockets)
    assert machine_forwards() == forwarding, "the network of pods is the lane's affair"


def machine_forwards() -> list[str]:
    """Whether the machine forwards packets, by family."""
    return [path.read_text() for path in Path("/proc/sys/net").glob("ipv[46]/conf/all/forwarding")]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_containers_outlive_a_restart(private_lane: Lane, how: signal.Signals) -> None:
    pod: Pod = private_lane.run_pod("stays", handler="runc")
    container = pod.container("app", BUSYBOX_IMAGE, ENDS_WITH_SEVEN).start()
    container.wait_for_log("ready")
    private_lane.restart(how)
    assert container.running
    container.stop()
    assert container.wait() == 7
