"""Every verb on real snapshots of a worker, and on pods that run: what people get to see."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import pytest
from bed.fetch import criu
from bed.images import HOST_IMAGE
from bed.lane import Lane
from bed.pod import Container, Pod
from gate import configured
from stored import copied_snapshot, edit_config, exists, forget, path_of
from workers import SNAPSHOT, USR, boot, checkpoint, outcome, script

pytestmark = [pytest.mark.one_lane]

SECRET = "hush-hush-hush"
ENV = {"MODEL": "small", "API_TOKEN": SECRET}
# A parent and a child, threads, sockets of two families, a file, memory of several kinds.
PROGRAM = """\
import mmap, os, signal, socket, threading, time
child = os.fork()
if child == 0:
    while True:
        signal.pause()
del os.environ["API_TOKEN"]
big = bytearray(os.urandom(3 << 20))
shared = mmap.mmap(-1, 1 << 20)
shared[:] = b"s" * (1 << 20)
server = socket.create_server(("0.0.0.0", 8080))
unix = socket.socket(socket.AF_UNIX)
unix.bind("/tmp/worker.sock")
unix.listen()
file = open("/root/notes", "w+")
file.write("notes")
file.flush()
for _ in range(2):
    threading.Thread(target=time.sleep, args=(100000,), daemon=True).start()
grown = []
def grow(*_):
    big[:1 << 20] = os.urandom(1 << 20)
    open("/root/grown", "w").write("x")
    print("grown")
signal.signal(signal.SIGUSR1, grow)
print("booted")
while True:
    signal.pause()
"""


class Made(NamedTuple):
    """Two snapshots, `worker` and what it was later, and containers that run."""

    same: Container  # would take them
    restored: Container  # has taken `worker`
    other: Container  # is another one


def worker(pod: Pod) -> Container:
    container = pod.container("app", HOST_IMAGE, script(PROGRAM), mounts=[USR], env=ENV)
    return container.start()


@pytest.fixture(scope="module")
def made(lane: Lane) -> Iterator[Made]:
    with lane.pod("maker") as pod:
        container = worker(pod)
        container.wait_for_log("booted")
        checkpoint(lane, container, "worker")
        container.exec(script("import os, signal; os.kill(1, signal.SIGUSR1)"))
        container.wait_for_log("grown")
        checkpoint(lane, container, "later")
    with (
        lane.pod("same") as same,
        lane.pod("restored", annotations={SNAPSHOT: "worker"}) as restored,
        lane.pod("other") as other,
    ):
        made = Made(worker(same), worker(restored), boot(other))
        made.same.wait_for_log("booted")  # what it makes later would pass for a test's leavings
        assert outcome(lane, made.restored).message == "restored"
        yield made
    for name in ("worker", "later"):
        forget(lane, name)


def said(lane: Lane, *command: str, status: int = 0) -> CompletedProcess[str]:
    """What a verb prints; it ends with that status, and says nothing that it should not."""
    done = lane.thaw(*command, check=False)
    shown = os.environ.get("THAW_TEST_SHOWN")
    if shown:
        with open(shown, "a") as file:
            file.write(f"$ thaw {' '.join(command)}\n{done.stdout}{done.stderr}[{status}]\n\n")
    assert done.returncode == status, done.stderr
    for text in (done.stdout, done.stderr):
        assert "Traceback" not in text
        assert SECRET not in text
    return done


def document(lane: Lane, *command: str, status: int = 0) -> Any:
    """The same with -o json."""
    return json.loads(said(lane, *command, "-o", "json", status=status).stdout)


def address(lane: Lane) -> tuple[str, str]:
    return "--address", str(lane.places.socket)


@pytest.mark.usefixtures("made")
def test_ls_and_show(lane: Lane) -> None:
    heads, *lines = said(lane, "ls").stdout.splitlines()
    assert heads.split()[:3] == ["NAME", "ID", "DIGEST"]
    assert [line.split()[0] for line in lines] == ["later", "worker"]
    assert said(lane, "ls", "-q").stdout.split() == ["later", "worker"]
    shown = said(lane, "show", "worker").stdout
    for words in ("API_TOKEN", "default", "app", "uid 0, gid 0"):
        assert words in shown
    listed = {line["name"]: line for line in document(lane, "ls")}
    assert listed["worker"]["used"] > 0
    assert not listed["later"]["used"]
    found = document(lane, "show", "worker")
    assert {"API_TOKEN", "MODEL"} <= set(found["config"]["origin"]["env"])
    assert found["id"] == listed["worker"]["id"]


@pytest.mark.usefixtures("made")
def test_inspect_and_mem(lane: Lane) -> None:
    looked = said(lane, "inspect", "worker", "--maps", "--files").stdout
    for words in ("0.0.0.0:8080", "/tmp/worker.sock", "/root/notes", "listening", "root/notes"):
        assert words in looked
    found = document(lane, "inspect", "worker")
    first, child = found["processes"]
    assert (first["pid"], len(first["threads"])) == (1, 3)
    assert child["parent"] == 1
    assert found["extents"] > 0
    assert found["memory"]["resident"] > 4 << 20
    said(lane, "mem", "worker")
    kinds = document(lane, "mem", "worker")["kinds"]
    assert sum(line["bytes"]["resident"] for line in kinds) == found["memory"]["resident"]


@pytest.mark.usefixtures("made")
def test_diff(lane: Lane) -> None:
    shown = said(lane, "diff", "worker", "later").stdout
    assert "root/grown" in shown
    found = document(lane, "diff", "worker", "later")
    assert not found["equal"]
    changed = sum(line["bytes"]["different"] for line in found["memory"])
    assert 1 << 20 <= changed < 4 << 20
    assert "not mapped" not in shown
    assert document(lane, "diff", "worker", "worker")["equal"]


@pytest.mark.usefixtures("made")
def test_verify(lane: Lane) -> None:
    said(lane, "verify", "worker")
    sealed = said(lane, "verify", "--seal", "--all").stdout
    assert sealed.count("sha256:") == 2
    lines = document(lane, "verify", "--all")
    assert all(line["digest"] and not line["faults"] for line in lines)
    copy = copied_snapshot(lane, "worker", "spoilt")
    (copy / "rootfs.tar.0000").write_bytes(b"")
    assert "rootfs.tar.0000" in said(lane, "verify", "spoilt", status=4).stdout


def test_fit(lane: Lane, made: Made) -> None:
    said(lane, "fit", "worker")
    assert said(lane, "fit", "worker", "--container", made.same.id, *address(lane)).stdout
    against = said(lane, "fit", "worker", "--container", made.other.id, *address(lane), status=4)
    for words in ("image", "argument", "/usr"):
        assert words in against.stdout
    found = document(lane, "fit", "worker", "--container", made.other.id, *address(lane), status=4)
    assert not found["fits"]
    assert len(found["reasons"]) >= 3
    copy = copied_snapshot(lane, "worker", "theirs")
    edit_config(copy, lambda config: config["origin"].update(namespace="other-team"))
    refused = said(lane, "fit", "theirs", "--container", made.same.id, *address(lane), status=4)
    assert "other-team" in refused.stdout


def test_plan(lane: Lane, made: Made) -> None:
    steps = said(lane, "plan", "--container", made.restored.id, *address(lane)).stdout
    for words in ("runc restore", "/dev/shm", "host name to restored"):
        assert words in steps
    other = made.other.id
    done = said(lane, "plan", "worker", "--container", other, *address(lane), status=4)
    assert "would not be restored" in done.stderr
    assert "asks for no snapshot" in said(lane, "plan", "--container", other, status=2).stderr


@pytest.mark.usefixtures("made")
def test_tag_rm_and_gc(lane: Lane) -> None:
    said(lane, "tag", "worker", "prod", "--shared")
    said(lane, "tag", "later", "prod", status=7)
    assert "(shared)" in said(lane, "ls").stdout
    said(lane, "tag", "prod", "--private")
    said(lane, "rm", "prod")
    said(lane, "rm", "prod", status=3)
    assert "nothing to remove" in said(lane, "gc", "--dry-run").stderr
    with configured(lane, criu(), "[retention]\nsize = 0.001\n"):
        said(lane, "gc")
    assert exists(lane, "later"), "it is too young to go"


@pytest.mark.usefixtures("made")
def test_timeline(lane: Lane, tmp_path: Path) -> None:
    svg, trace = tmp_path / "of.svg", tmp_path / "of.json"
    done = said(lane, "timeline", "worker", "--svg", str(svg), "--trace", str(trace))
    assert "dump" in done.stdout
    texts = [element.text for element in ET.parse(svg).iter() if element.tag.endswith("text")]
    assert "dump" in texts
    events = json.loads(trace.read_text())["traceEvents"]
    assert "dump" in {event["name"] for event in events}


def test_doctor(lane: Lane) -> None:
    done = said(lane, "doctor", *address(lane))
    assert "handler thaw" in done.stdout
    found = document(lane, "doctor", *address(lane))
    assert found["fit"]
    assert {finding["grade"] for finding in found["findings"]} >= {"required", "recommended"}
    for finding in found["findings"]:
        assert finding["said"], finding
        assert finding["state"] == "ok" or finding["fix"], finding
    nobody = said(lane, "doctor", "-q", "--address", "/nowhere", status=4).stdout
    assert "/nowhere" in nobody


def test_completion(lane: Lane) -> None:
    assert "complete -" in said(lane, "completion", "bash").stdout


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("show", "nobody"), 3),
        (("show", "../x"), 2),
        (("inspect", "/nowhere"), 3),
        (("timeline", "nobody"), 3),
        (("diff", "worker", "nobody"), 3),
        (("fit", "worker", "--container", "0123456789"), 3),
        (("tag", "worker"), 2),
        (("export", "worker"), 2),
        (("index", "worker"), 2),
        (("push", "worker", "elsewhere"), 2),
        (("pull", "elsewhere"), 2),
    ],
)
def test_refusals(lane: Lane, command: tuple[str, ...], status: int) -> None:
    done = said(lane, *command, status=status)
    assert done.stdout == ""
    assert done.stderr.startswith(f"thaw {command[0]}: ")


def test_the_store_has_no_values_of_the_environment(lane: Lane, made: Made) -> None:
    """Only the worker's memory has: nothing that people or programs read beside it."""
    path = path_of(lane, "worker")
    for file in (path / "config.json", path / "index/index.json", lane.places.audit):
        assert SECRET not in file.read_text(), file
    assert SECRET not in lane.log(1 << 20)  # without what containerd says when it debugs
    assert made.same.running
