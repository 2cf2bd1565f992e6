"""containerd goes and comes back; containers, cold and restored, do not notice."""

from __future__ import annotations

import os
import signal

import pytest
from bed.images import BUSYBOX_IMAGE
from bed.lane import Lane
from gate import gate
from workers import (
    COMMAND,
    SNAPSHOT,
    alive,
    ask,
    boot,
    checkpoint,
    init_pid,
    outcome,
    removed,
    shim_pid,
    wait_until,
)

BOTH = pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])


@BOTH
def test_containers_run_on_and_their_ends_are_reported(
    private_lane: Lane, how: signal.Signals
) -> None:
    lane = private_lane
    with lane.pod("stays", annotations={SNAPSHOT: "worker"}) as pod:
        cold = boot(pod, "cold")
        other = boot(pod, "app")
        checkpoint(lane, other, "worker")
        other.remove()
        restored = pod.container("app", BUSYBOX_IMAGE, COMMAND, attempt=1).start()
        assert outcome(lane, restored).message == "restored"
        lane.restart(how)
        for container in (cold, restored):
            assert container.running
            assert ask(container).asked == 1  # by its log, which goes on
        assert cold.exec(["hostname"]).stdout == restored.exec(["hostname"]).stdout == "stays\n"
        # One ends while containerd is away, one when it is back. Since 1.7 containerd takes a shim
        # without processes for a leak and forgets the exit code, whichever shim it is.
        pid = init_pid(lane, cold.id)
        lane.stop(how)
        os.kill(pid, signal.SIGTERM)
        # Until the shim has reaped it: a containerd that is back asks at once which processes run.
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the end of the cold worker")
        lane.start()
        assert cold.wait() == (7 if lane.version == "1.6" else 255)
        assert ask(restored).asked == 2
        restored.stop()
        assert restored.wait() == 7


@BOTH
def test_in_the_middle_of_a_restore(private_lane: Lane, how: signal.Signals) -> None:
    lane = private_lane
    with lane.pod("maker") as maker:
        checkpoint(lane, boot(maker), "worker")
    with gate(lane, "post-restore") as held:
        pod = lane.run_pod("halfway", annotations={SNAPSHOT: "worker"})
        container = pod.container("app", BUSYBOX_IMAGE, COMMAND)
        starting = container.starting()
        held.wait()
        shim = shim_pid(lane, container.id)
        lane.stop(how)
        starting.exception(60)
        lane.start()
        held.open()
        assert alive(shim)
        wait_until(lambda: removed(pod), "the end of the pod")
        wait_until(lambda: not alive(shim), "the end of the shim")
    with lane.pod("after", annotations={SNAPSHOT: "worker"}) as pod:
        assert ask(pod.container("app", BUSYBOX_IMAGE, COMMAND).start()).asked == 1


def test_a_pod_of_a_dead_containerd_and_a_dead_shim(private_lane: Lane) -> None:
    """Both go at once, as in a machine that is out of memory; the pod can still be removed."""
    lane = private_lane
    pod = lane.run_pod("both")
    container = boot(pod)
    worker, shim = init_pid(lane, container.id), shim_pid(lane, container.id)
    lane.stop(signal.SIGKILL)
    os.kill(shim, signal.SIGKILL)
    wait_until(lambda: not alive(shim), "the end of the shim")
    lane.start()
    wait_until(lambda: not alive(worker), "the end of the worker")
    wait_until(lambda: removed(pod), "the end of the pod")
