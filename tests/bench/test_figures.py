"""The figures of the README: Thaw beside containerd's own runc shim, in one run, on one containerd.

Nothing is asserted about time: machines differ and are noisy, so medians and their ratio are
printed. THAW_BENCH_RUNS sets how often each thing is measured: once by default, so that the whole
suite stays short; the README's figures are of 7.

    THAW_BENCH_RUNS=7 bash tests/run.sh tests/bench
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from bed.images import BUSYBOX_IMAGE
from bed.install import installed
from bed.lane import CRI_NAMESPACE, Lane, opened
from bed.leaks import command_line, processes
from bed.model import ask, model_server, wait_until_healthy
from serving import annotated, said, speaking
from workers import executed, outcome

from shim.worker.control import RESTORED, WAKE, Control, User

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

CHECKOUT = Path(__file__).resolve().parents[2]
RUNS = int(os.environ.get("THAW_BENCH_RUNS", "1"))
SHIMS = ("runc", "thaw")
PROMPT = "Once upon a time, a container"
# What makes a restored worker a new member, in the order in which it is done.
HOOK = ("hold", "adopt", "introduce", "complete", "release")


@pytest.fixture(scope="module")
def lane() -> Iterator[Lane]:
    if os.environ.get("THAW_TEST_INSTALLATION") == "none":
        pytest.skip("measures the product, which THAW_TEST_INSTALLATION=none leaves out")
    with opened("2.x", installed(CHECKOUT), layers=False) as lane:
        yield lane
        lane.clear()


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    def tell(line: str) -> None:
        with capfd.disabled():
            print(f"\n    {line}", end="")

    return tell


def test_ctr_run(lane: Lane, tell: Callable[[str], None]) -> None:
    def run(shim: str, number: int) -> float:
        arguments = lane.runtime_arguments(shim)
        began = time.monotonic()
        lane.ctr("run", "--rm", *arguments, BUSYBOX_IMAGE, f"bench-{shim}-{number}", "true")
        return time.monotonic() - began

    tell(compared("ctr run --rm … true", "ms", in_turn(run)))


def test_pod(lane: Lane, tell: Callable[[str], None]) -> None:
    def run(shim: str, number: int) -> float:
        began = time.monotonic()
        pod = lane.run_pod(f"bench-{shim}-{number}", handler=shim)
        pod.container("app", BUSYBOX_IMAGE, ["sleep", "1000"]).start()
        seconds = time.monotonic() - began
        pod.remove()
        return seconds

    tell(compared("pod created → container running (CRI)", "ms", in_turn(run)))


def test_idle_memory(lane: Lane, tell: Callable[[str], None]) -> None:
    """PSS of a shim with a pause and one container, after it has come to rest."""
    sizes: dict[str, list[float]] = {}
    with ExitStack() as stack:
        pods = {s: stack.enter_context(lane.pod(f"idle-{s}", handler=s)) for s in SHIMS}
        for pod in pods.values():
            pod.container("app", BUSYBOX_IMAGE, ["sleep", "1000"]).start()
        time.sleep(2)  # both shims let threads and caches go
        for shim, pod in pods.items():
            mine = [pid for pid in processes(lane.places.folder) if pod.id in command_line(pid)]
            sizes[shim] = [proportional_size(pid) for pid in mine[:1]]
    tell(compared("PSS of an idle shim", "KiB", sizes))


def test_small_restore(lane: Lane, tell: Callable[[str], None]) -> None:
    """The floor: what a restore costs when there is next to nothing to restore."""
    command = ["sleep", "100000"]
    with lane.pod("small", handler="thaw") as pod:
        container = executed(pod.container("app", BUSYBOX_IMAGE, command).start(), "sleep")
        lane.thaw("checkpoint", container.id, "small", "--namespace", CRI_NAMESPACE)
    seconds = []
    for number in range(RUNS):
        notes = {"thaw.dev/snapshot": "small", "thaw.dev/on-failure": "fail"}
        with lane.pod(f"small-{number}", annotations=notes, handler="thaw") as pod:
            container = pod.container("app", BUSYBOX_IMAGE, command)
            began = time.monotonic()
            container.start()
            seconds.append(time.monotonic() - began)
    lane.thaw("rm", "small")
    median = statistics.median(seconds) * 1000
    tell(f"StartContainer of a small worker, restored: {median:.0f} ms (median of {RUNS})")


@pytest.mark.parametrize("pause", [0.0, 0.5])
def test_a_new_identity(lane: Lane, tell: Callable[[str], None], pause: float) -> None:
    """The hook's share of a restore, step by step; the canary's time is the worker's own.

    What it imports is begun when the sandbox is made, and is done by then if there is a pause.
    """
    with lane.pod("identity", handler="thaw") as pod:
        container = speaking(pod, annotated(ready="contract")).start()
        said(container, "booted")
        lane.thaw("checkpoint", container.id, "identity", "--namespace", CRI_NAMESPACE)
    timelines = []
    notes = annotated(snapshot="identity", on_failure="fail", canary="exec:true")
    for number in range(RUNS):
        with lane.pod(f"identity-{number}", annotations=notes, handler="thaw") as pod:
            container = speaking(pod, {})
            time.sleep(pause)
            container.start()
            said(container, "restore-complete")
            timelines.append(spans(outcome(lane, container).fields["timeline"]))
    lane.thaw("rm", "identity")
    medians = {step: statistics.median(line[step] for line in timelines) for step in HOOK}
    whole = statistics.median(sum(line[step] for step in HOOK) for line in timelines)
    each = ", ".join(f"{step} {milliseconds:.0f}" for step, milliseconds in medians.items())
    canary = statistics.median(line["canary"] for line in timelines)
    tell(
        f"a new identity, {pause:g} s after its sandbox: {whole:.0f} ms ({each}), "
        f"an exec as its canary {canary:.0f} ms"
    )


WAITER = """\
import os, sys, time
with open(os.open(sys.argv[1], os.O_RDWR)) as wake:
    print("ready", flush=True)
    for line in wake:
        print(time.monotonic_ns(), flush=True)
"""


def test_a_worker_is_woken(tmp_path: Path, tell: Callable[[str], None]) -> None:
    """From before the event's file is written until the worker has read its line."""
    control = Control(str(tmp_path), User(0, 0))
    control.clear()
    argv = [sys.executable, "-ISc", WAITER, str(tmp_path / WAKE)]
    took = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as waiter:
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "ready\n"
        for _ in range(100):
            time.sleep(0.005)
            began = time.monotonic_ns()
            control.tell(RESTORED)
            took.append((int(waiter.stdout.readline()) - began) / 1000)
        waiter.kill()
    tell(f"a worker is woken within {statistics.median(took):.0f} µs (at most {max(took):.0f})")


def spans(timeline: str) -> dict[str, float]:
    """Milliseconds of each step, from a line of the log."""
    pairs = (word.partition("=") for word in timeline.split())
    return {step: float(seconds) * 1000 for step, _, seconds in pairs}


@pytest.mark.skipif(
    "THAW_BENCH_RUNS" not in os.environ,
    reason="tests/e2e/test_model.py shows the same, but for the figure; see THAW_BENCH_RUNS",
)
def test_model_server(lane: Lane, tell: Callable[[str], None]) -> None:
    def boot(name: str, notes: dict[str, str]) -> tuple[float, list[int], str]:
        began = time.monotonic()
        pod = lane.run_pod(name, annotations=notes, handler="thaw")
        container = model_server(pod).start()
        wait_until_healthy(pod.ip)
        ask(pod.ip, PROMPT, count=1)
        seconds = time.monotonic() - began
        return seconds, ask(pod.ip, PROMPT).tokens, container.id

    cold, tokens, container_id = boot("cold", {})
    lane.thaw("checkpoint", container_id, "model", "--namespace", CRI_NAMESPACE)
    lane.clear()
    notes = {"thaw.dev/snapshot": "model", "thaw.dev/on-failure": "fail"}
    restored, again, _ = boot("restored", notes)
    lane.clear()
    lane.thaw("rm", "model")
    assert again == tokens
    tell(
        f"model server, pod created → first token: cold {cold:.2f} s, "
        f"restored {restored:.2f} s, ratio {cold / restored:.1f}"
    )


def in_turn(run: Callable[[str, int], float]) -> dict[str, list[float]]:
    """Milliseconds of each shim, measured in turn (a machine's speed drifts), the first dropped."""
    figures: dict[str, list[float]] = {shim: [] for shim in SHIMS}
    for number in range(RUNS + 1):
        for shim in SHIMS:
            seconds = run(shim, number)
            if number:
                figures[shim].append(seconds * 1000)
    return figures


def compared(what: str, unit: str, figures: dict[str, list[float]]) -> str:
    """One line: both medians and their ratio."""
    runc, thaw = (statistics.median(figures[shim]) for shim in SHIMS)
    return f"{what}: runc {runc:.0f} {unit}, thaw {thaw:.0f} {unit}, ratio {thaw / runc:.2f}"


def proportional_size(pid: int) -> float:
    """The Pss of a process in KiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return float(line.split()[1])
    raise LookupError(f"no Pss of {pid}")
