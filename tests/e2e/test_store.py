"""The store seen from pods: who may restore what, digests, and what happens to it meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bed.fetch import criu
from bed.images import BUSYBOX_IMAGE
from bed.lane import CRI_NAMESPACE, Lane
from bed.pod import Container
from gate import configured, gate
from stored import copied_snapshot, edit_config, exists, forget, ids, path_of
from workers import (
    COMMAND,
    FAIL,
    SNAPSHOT,
    Told,
    ask,
    boot,
    booted_cold,
    checkpoint,
    kept_snapshot,
    outcome,
)

pytestmark = [pytest.mark.one_lane]


@pytest.fixture(scope="module")
def base(lane: Lane) -> Iterator[str]:
    with kept_snapshot(lane, "base", boot) as name:
        yield name


def audit(lane: Lane, event: str) -> list[dict[str, Any]]:
    """The lines of the audit log about that kind of event."""
    lines = lane.places.audit.read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == event]


@contextmanager
def asked_for(lane: Lane, name: str, **notes: str) -> Iterator[Container]:
    """A pod whose container asks for a snapshot; it has started, one way or the other."""
    annotations = {SNAPSHOT: name, **{key.replace("_", "-"): v for key, v in notes.items()}}
    with lane.pod("asking", annotations=annotations) as pod:
        container = pod.container("app", BUSYBOX_IMAGE, COMMAND).start()
        yield container


def background(function: Callable[[], Any]) -> Callable[[], Any]:
    """Call it in another thread; calling what is returned waits for what it returns."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function)
    pool.shutdown(wait=False)
    return lambda: future.result(120)


@contextmanager
def small_file_system(folder: Path, kib: int) -> Iterator[Path]:
    """A tmpfs of that size."""
    folder.mkdir()
    size = f"size={kib}k,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_digest_stays_what_it_is(lane: Lane, base: str) -> None:
    """A tag moves on; whoever pinned the digest gets the same snapshot as before."""
    lane.thaw("tag", base, "moving")
    lane.thaw("verify", "--seal", "moving")
    shown = json.loads(lane.thaw("show", "moving", "-o", "json").stdout)
    digest = shown["digest"]
    assert digest.startswith("sha256:")
    with lane.pod("next") as pod:
        checkpoint(lane, boot(pod), "moving", "--replace")
    assert path_of(lane, "moving") != path_of(lane, base)
    with asked_for(lane, f"moving@{digest}", **{"thaw.dev/on_failure": "fail"}) as container:
        assert outcome(lane, container).message == "restored"
        assert not booted_cold(container)
    assert path_of(lane, f"moving@{digest}") == path_of(lane, base)


def test_what_was_made_elsewhere_is_not_restored_here(lane: Lane, base: str) -> None:
    """All pods of the lane are in one namespace; so the snapshot gets another."""
    copy = copied_snapshot(lane, base, "theirs")
    edit_config(copy, lambda config: config["origin"].update(namespace="other-team"))
    with asked_for(lane, "theirs") as container:
        line = outcome(lane, container)
        assert (line.message, line.fields["reason"]) == ("booting cold", "Denied")
        assert "other-team" in line.fields["error"]
    refusal = audit(lane, "refuse")[-1]
    assert (refusal["name"], refusal["reason"]) == ("theirs", "Denied")
    lane.thaw("tag", "theirs", "everybodys", "--shared")
    with asked_for(lane, "everybodys") as container:
        assert outcome(lane, container).message == "restored"
    lane.thaw("tag", "theirs", "everybodys", "--private", "--replace")
    with (
        configured(lane, criu(), 'policy.namespaces = "any"\n'),
        asked_for(lane, "everybodys") as container,
    ):
        assert outcome(lane, container).message == "restored"


def test_every_step_of_its_life_is_in_the_audit_log(lane: Lane) -> None:
    with lane.pod("audited") as pod:
        checkpoint(lane, boot(pod), "audited")
    id = path_of(lane, "audited").name
    with asked_for(lane, "audited"):
        pass
    lane.thaw("rm", "audited")
    for event in ("create", "restore", "remove"):
        line = audit(lane, event)[-1]
        assert line["name"] == "audited", event
        assert line["id"] == id, event
        assert line["outcome"], event
    assert audit(lane, "restore")[-1]["pod"] == "asking"
    assert lane.places.audit.stat().st_mode & 0o777 == 0o600


def test_one_that_is_being_restored_cannot_be_removed(lane: Lane, base: str) -> None:
    lane.thaw("tag", base, "held")
    with (
        gate(lane, "post-restore") as held_back,
        lane.pod("slow", annotations={SNAPSHOT: "held", **FAIL}) as pod,
    ):
        container = pod.container("app", BUSYBOX_IMAGE, COMMAND)
        start = background(container.start)
        held_back.wait()
        done = lane.thaw("rm", path_of(lane, "held").name, check=False)
        assert done.returncode != 0
        assert "is being restored from" in done.stderr
        held_back.open()
        start()
        assert ask(container)
    lane.thaw("rm", "held")
    assert exists(lane, base), "another name of it"


def test_one_that_was_deleted_by_hand_meanwhile(lane: Lane) -> None:
    """Whoever does not ask `thaw rm` gets a container that boots cold, or is restored."""
    with lane.pod("doomed") as pod:
        checkpoint(lane, boot(pod), "doomed")
    with (
        gate(lane, "pre-restore") as held_back,
        lane.pod("surprised", annotations={SNAPSHOT: "doomed"}) as pod,
    ):
        container = pod.container("app", BUSYBOX_IMAGE, COMMAND)
        start = background(container.start)
        held_back.wait()
        forget(lane, "doomed")
        held_back.open()
        start()
        message = outcome(lane, container).message
        assert message in ("booting cold", "restored")
        if message == "booting cold":
            container.wait_for_log("booted")  # what comes before it listens is lost
        assert ask(container)


def test_no_room(lane: Lane, tmp_path: Path) -> None:
    """A clear error, a worker that runs on, and nothing left of the draft."""
    with lane.pod("large") as pod, small_file_system(tmp_path / "small", 200) as store:
        before = lane.places.thaw_config.read_text()
        more = before.replace(f'snapshots = "{lane.places.snapshots}"', f'snapshots = "{store}"')
        lane.places.thaw_config.write_text(more)
        try:
            container = boot(pod)
            told = ask(container)
            command = ("checkpoint", container.id, "large", "--namespace", CRI_NAMESPACE)
            done = lane.thaw(*command, check=False)
        finally:
            lane.places.thaw_config.write_text(before)
        assert done.returncode != 0
        assert "no room" in done.stderr or "No space left" in done.stderr
        assert "Traceback" not in done.stderr
        assert ask(container) == (told.token, told.asked + 1)
        left = [path for path in store.rglob("*") if path.is_file()]
        assert left == []


def test_a_store_that_can_only_be_read(lane: Lane, base: str, tmp_path: Path) -> None:
    """As one that many nodes share: restored from, never written to."""
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o700)
    subprocess.run(["mount", "--bind", str(lane.places.snapshots), shared], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", shared], check=True)
    before = lane.places.thaw_config.read_text()
    own = tmp_path / "own"
    try:
        lane.places.thaw_config.write_text(
            before.replace(f'"{lane.places.snapshots}"', f'"{own}:{shared}"')
        )
        with asked_for(lane, base, **{"thaw.dev/on_failure": "fail"}) as container:
            assert outcome(lane, container).message == "restored"
        assert base in lane.thaw("ls").stdout
        done = lane.thaw("rm", base, check=False)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
    finally:
        lane.places.thaw_config.write_text(before)
        subprocess.run(["umount", shared], check=True)
    assert exists(lane, base)


def test_pages_on_several_disks(lane: Lane, tmp_path: Path) -> None:
    more = f'stripes = "{tmp_path}/other"\n'
    store = lane.places.snapshots
    before = lane.places.thaw_config.read_text()
    lane.places.thaw_config.write_text(more + before)
    try:
        with lane.pod("spread") as pod:
            container = boot(pod)
            told = ask(container)
            checkpoint(lane, container, "spread")
        id = path_of(lane, "spread").name
        here, there = (
            os.listdir(f / "snapshots" / id / "pages") for f in (store, tmp_path / "other")
        )
        assert here
        assert there
        with asked_for(lane, "spread", **{"thaw.dev/on_failure": "fail"}) as container:
            assert outcome(lane, container).message == "restored"
            assert ask(container) == Told(told.token, told.asked + 1)
        lane.thaw("rm", "spread")
        assert list(tmp_path.glob("*/snapshots/*")) == []
    finally:
        lane.places.thaw_config.write_text(before)


def test_the_first_of_two_makers_of_one_name_wins(lane: Lane) -> None:
    def dump(container: Container) -> subprocess.CompletedProcess[str]:
        name = ("checkpoint", container.id, "contested", "--namespace", CRI_NAMESPACE)
        return lane.thaw(*name, check=False)

    before = ids(lane)
    with (
        gate(lane, "post-dump") as held_back,
        lane.pod("one") as one,
        lane.pod("two") as two,
    ):
        first, second = boot(one), boot(two)
        dumps = [background(partial(dump, container)) for container in (first, second)]
        for _ in dumps:
            held_back.wait()
            held_back.open()
        done = [result() for result in dumps]
        assert sorted(code.returncode != 0 for code in done) == [False, True]
        assert any("a snapshot named contested exists" in code.stderr for code in done)
        assert ask(first)
        assert ask(second)
    assert ids(lane) - before == {path_of(lane, "contested").name}
