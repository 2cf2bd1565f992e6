"""A container that has booted cold, with an engine that is played and a control directory."""

from __future__ import annotations

from typing import Any

from fakes.pod import Pod
from shim.task.container import Container

FOREVER = ("sleep", "1000")
NAMED = {"thaw.dev/checkpoint": "warm", "thaw.dev/ready": "file:/ready"}
MADE = {"frozen": 0.5, "quiet": 0.7, "refused": "", "unresumed": ""}
# Workers that end on SIGTERM, or not; they say when they are as far as that.
POLITE = 'trap "exit 9" TERM; >"$0/ready-for-snapshot"; while :; do sleep 0.02; done'
STUBBORN = 'trap "" TERM; >"$0/ready-for-snapshot"; while :; do sleep 0.02; done'


class Group:
    """A cgroup that a process of the tests is not in."""

    def pids(self) -> list[int]:
        return []


def started(pod: Pod, notes: dict[str, str], *args: str, name: str = "c") -> Container:
    """A container that has booted cold, with a volume at the place of its control directory."""
    for key in ("policy.auto", "policy.checkpoint"):
        pod.settings.setdefault(key, "*")
    folder = pod.folder / "control"
    folder.mkdir(exist_ok=True)
    mount = {"destination": "/snapshot-control", "type": "bind", "source": str(folder)}
    spec = {"annotations": notes, "mounts": [{**mount, "options": ["rbind"]}]}
    container = pod.create(name, *(args or FOREVER), spec=spec)
    group: Any = Group()
    container._cgroup = group
    pod.start(name)
    return container


def ending(pod: Pod, plays: Any, notes: dict[str, str], script: str) -> int:
    """How a container ends whose snapshot has been made."""
    warm = str(pod.folder / "control/ready-for-snapshot")
    plays.set("await", play="reply", reply={"name": "warm", "because": ""}, after=warm)
    plays.set("checkpoint", play="reply", reply=MADE)
    started(pod, notes, "sh", "-c", script, str(pod.folder / "control"))
    status: int = pod.wait("c").get().exit_status
    assert (plays.seen[1]["exit"], plays.seen[1]["ends"]) == (False, True), "it runs until then"
    assert (pod.folder / "control/snapshot-complete").exists()
    assert not (pod.folder / "control/restore-complete").exists()
    return status
