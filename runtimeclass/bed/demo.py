"""The demo: a model server boots cold in a pod, is snapshotted, and comes back in another pod.

Run by ../demo.sh. The restore may not fall back to a cold boot here, so the table cannot flatter:
a restore that fails ends the demo with its reason.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import grpc

from bed.dismantle import sweep
from bed.install import installed
from bed.lane import CRI_NAMESPACE, Lane, opened
from bed.model import Answer, ask, model_environment, model_server, wait_until_healthy
from bed.pod import Container

CHECKOUT = Path(__file__).resolve().parents[2]
SNAPSHOT = "demo"
PROMPT = "Once upon a time, a container"
RESTORED = {"thaw.dev/snapshot": SNAPSHOT, "thaw.dev/on-failure": "fail"}


class Boot(NamedTuple):
    """One start of the server: seconds from the pod's creation, and what it said."""

    address: str
    started: float  # StartContainer has returned
    answered: float  # the first token is there
    answer: Answer


def main() -> int:
    """Run it all; 0 if both servers answered alike."""
    say("preparing the product and the model's environment (minutes, the first time)")
    sweep(Path(tempfile.gettempdir()))
    product = installed(CHECKOUT)
    model_environment()
    say("starting a private containerd 2.x")
    with opened("2.x", product, layers=False) as lane:
        return show(lane)


def show(lane: Lane) -> int:
    """Cold start, snapshot, restore, table."""
    try:
        say("booting the model server cold")
        cold, container = boot(lane, "cold", {})
        snapshot_seconds = checkpoint(lane, container)
        lane.clear()
        say("its pod is gone; restoring in a new pod")
        restored, container = boot(lane, "restored", RESTORED)
    except (RuntimeError, TimeoutError, grpc.RpcError) as error:
        said = error.details() if isinstance(error, grpc.Call) else str(error)
        print(f"demo: {said}\n{lane.log()}", file=sys.stderr)
        return 1
    same = cold.answer == restored.answer
    print(table(cold, restored, snapshot_seconds, snapshot_size(lane), same))
    return 0 if same else 1


def boot(lane: Lane, name: str, annotations: Mapping[str, str]) -> tuple[Boot, Container]:
    """Run a pod with the server and ask it; cold and restored go exactly the same way."""
    began = time.monotonic()
    pod = lane.run_pod(name, annotations=annotations)
    container = model_server(pod).start()
    started = time.monotonic() - began
    wait_until_healthy(pod.ip)
    ask(pod.ip, PROMPT, count=1)
    answered = time.monotonic() - began
    return Boot(pod.ip, started, answered, ask(pod.ip, PROMPT)), container


def checkpoint(lane: Lane, container: Container) -> float:
    """Make the snapshot, as an operator does; seconds."""
    say("making a snapshot of it")
    began = time.monotonic()
    lane.thaw("checkpoint", container.id, SNAPSHOT, "--namespace", CRI_NAMESPACE)
    return time.monotonic() - began


def snapshot_size(lane: Lane) -> int:
    """Bytes on disk of the one snapshot in the store."""
    files = lane.places.snapshots.rglob("*")
    return sum(path.lstat().st_blocks * 512 for path in files)


def table(cold: Boot, restored: Boot, snapshot_seconds: float, size: int, same: bool) -> str:
    """What was measured, for people."""
    ratio = f"{cold.answered / restored.answered:.1f} x"
    rows = [
        ("", "cold start", "restore", "ratio"),
        ("pod created → container running", seconds(cold.started), seconds(restored.started), ""),
        ("pod created → first token", seconds(cold.answered), seconds(restored.answered), ratio),
        ("pod's address", cold.address, restored.address, ""),
        ("snapshot", f"{seconds(snapshot_seconds)} to make", f"{size / 2**20:.0f} MiB", ""),
        ("same 32 tokens in both answers", "", "yes" if same else "NO", ""),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    asked = f"Asked: {json.dumps(PROMPT)}; its tokens begin with {restored.answer.tokens[:8]}"
    return "\n".join(["", *lines, "", asked])


def seconds(value: float) -> str:
    """A time, for people."""
    return f"{value:.2f} s"


def say(what: str) -> None:
    """Tell how far it is."""
    print(f"demo: {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
