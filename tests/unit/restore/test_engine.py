"""A restore as a whole: judged before anything is touched, undone from wherever it broke off."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import images
from fakes.inet_images import entry, states
from fakes.snapshots import CONFIG, file_of, tar_of, write
from fakes.work import make_work, runc_calls

from oci_hooks import hold
from shim.errors import (
    BadName,
    Damaged,
    Denied,
    NoSuchSnapshot,
    OtherContainer,
    RestoreFailed,
    ThawError,
    Unfit,
)
from shim.gpu import preload
from shim.mount import mount_points
from shim.proto import criu_pb as pb
from shim.restore import engine, huge, namespace, stages
from shim.restore.adoption import Adoption
from shim.restore.bulk import Memory, ReadAhead
from shim.restore.device import Device
from shim.restore.engine import prepare, restore, take_back, undo
from shim.restore.hook import Hook
from shim.restore.plan import Plan
from shim.restore.steps import Step, steps_of
from shim.snapshot import privileges as judging
from shim.snapshot.artifact import seal
from shim.snapshot.config import SnapshotConfig
from shim.snapshot.cuda import CudaProcess, CudaState, Staging
from shim.snapshot.host import this_host
from shim.snapshot.images import FILES
from shim.snapshot.origin import origin_of
from shim.snapshot.store import Stores
from shim.task import contract
from shim.work import Work

ID = "0123456789abcdef"

STEPS = steps_of(Memory(None), Adoption(), Device())
# What the timeline shows of two of them.
PLANNED = ("open", "judge", "gpus", "files")
PARTS = (*PLANNED, "processes", "memory", "room")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    """A container that is to be restored from the snapshot `one`."""
    (tmp_path / "shm").mkdir()
    spec = {
        "linux": {
            "cgroupsPath": "/thaw-test-no-such-group",
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "mount"}],
        },
        "mounts": [
            {"destination": "/dev/shm", "source": str(tmp_path / "shm"), "options": ["rbind"]}
        ],
    }
    path = tmp_path / "snapshots" / "snapshots" / ID
    asked = {"name": "one", "snapshot": str(path), "outright": True}
    made = make_work(tmp_path, spec, **asked)
    yield made
    made.runc.delete(force=True)
    left = mount_points(str(tmp_path))
    subprocess.run(["umount", "-l", *reversed(left)], check=False)
    assert left == []


@pytest.fixture
def config(work: Work) -> SnapshotConfig:
    """A config that fits it."""
    live = origin_of(work.bundle.spec(), "", "")
    return replace(CONFIG, origin=live, host=this_host(), volumes=["/dev/shm"])


@pytest.fixture
def snapshot(tmp_path: Path, config: SnapshotConfig) -> Path:
    """In its archives are files of the worker's."""
    changed, mapped = tar_of({"changed": b"by the worker"}), tar_of({"mapped": b"by the worker"})
    contents = {
        "rootfs.tar.0000": changed,
        "volumes/0.tar.0000": mapped,
        "criu/files.img": images.image(FILES),
    }
    (tmp_path / "snapshots").mkdir(mode=0o700)
    return write(tmp_path / "snapshots" / "snapshots" / ID, config, contents)


@pytest.fixture(autouse=True)
def mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake runtime mounts nothing; see test_frozen.py."""
    monkeypatch.setattr(stages, "check_mounts", lambda *_: None)
    monkeypatch.setattr(stages, "exchange", lambda *_: None)  # init is of this machine


@pytest.fixture(autouse=True)
def privileges(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The images are none that could be looked into: which were to be, is kept."""
    asked: list[Path] = []
    monkeypatch.setattr(judging, "check", lambda images, _spec: asked.append(images))
    return asked


def make_plan(work: Work) -> Plan:
    plan, memory = prepare(work)
    memory.close()
    return plan


def asked(work: Work, **changes: Any) -> Work:
    return Work.parse({**work.raw, **changes})


def archive(plan: Plan) -> Path | None:
    return plan.difference.base if plan.difference is not None else None


def untouched(folder: Path) -> bool:
    made = [
        *(folder / "upper").iterdir(),
        *(folder / "work").iterdir(),
        *(folder / "shm").iterdir(),
    ]
    return not made and not mount_points(str(folder)) and not os.listdir(folder / "state")


# Judging


def test_a_plan(work: Work, snapshot: Path, tmp_path: Path, privileges: list[Path]) -> None:
    plan = make_plan(work)
    assert plan.images == snapshot / "criu"
    assert archive(plan) == snapshot / "rootfs.tar"
    assert privileges == [snapshot / "criu"]
    assert untouched(tmp_path)


def test_there_is_no_such_snapshot(work: Work, tmp_path: Path) -> None:
    with pytest.raises(NoSuchSnapshot):
        restore(work)
    with pytest.raises(BadName):
        restore(asked(work, name="a/b"))
    for path in (tmp_path / "elsewhere", tmp_path / "snapshots", tmp_path):
        with pytest.raises(NoSuchSnapshot, match="is no snapshot of a store"):
            restore(asked(work, snapshot=str(path)))
    assert untouched(tmp_path)


Spoil = Callable[[Path, SnapshotConfig], object]


def swap_config(**changes: Any) -> Spoil:
    def swap(folder: Path, made: SnapshotConfig) -> None:
        files = SnapshotConfig.from_json((folder / "config.json").read_text(), "x").files
        text = replace(made, **{"files": files, **changes}).to_json()
        (folder / "config.json").write_text(text)

    return swap


def flipped(name: str, place: int = 0) -> Spoil:
    def flip(folder: Path, _: SnapshotConfig) -> None:
        data = bytearray((folder / name).read_bytes())
        data[place] ^= 1
        (folder / name).write_bytes(data)

    return flip


def unlinked(name: str) -> Spoil:
    return lambda folder, _: (folder / name).unlink()


def linked(name: str) -> Spoil:
    def link(folder: Path, _: SnapshotConfig) -> None:
        (folder / name).rename(folder.parent / "moved")
        (folder / name).symlink_to(folder.parent / "moved")

    return link


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (swap_config(host=replace(CONFIG.host, architecture="vax")), "made on vax"),
        (swap_config(volumes=["/elsewhere"]), "no volume at /elsewhere"),
        (swap_config(files={"criu/core-1.img": file_of(b"xxxxx")}), "has 4 bytes, it had 5"),
        (swap_config(files={"criu/core-1.img": file_of(b"xxxx")}), "0.tar.0000 is missing"),
        (swap_config(pages={"pages-1.img.0000": 8192}), "0000 has 4096 bytes, it had 8192"),
        (swap_config(pages={"pages-1.img.0001": 4096}), "0001 is missing"),
        (flipped("config.json", 100), "not what was written|config.json"),
        (flipped("rootfs.tar.0000", 700), "rootfs.tar.0000 is not what it was"),
        (flipped("volumes/0.tar.0000"), "0.tar.0000 is not what it was"),
        (flipped("criu/core-1.img"), "core-1.img is not what it was"),
        (unlinked("rootfs.tar.0000"), "rootfs.tar.0000 is missing"),
        (unlinked("pages/pages-1.img.0000"), "pages-1.img.0000 is missing"),
        (linked("criu/core-1.img"), "core-1.img is no regular file"),
        (linked("pages"), "pages is no regular file"),
        (lambda folder, _: os.mkfifo(folder / "criu/tty-info.img"), "tty-info.img is no regular"),
        (lambda folder, _: (folder / "criu/core-1.img").chmod(0o666), "core-1.img can be written"),
        (lambda folder, _: os.chown(folder / "criu/core-1.img", 12345, 0), "can be written"),
        (lambda folder, _: folder.chmod(0o777), "written to by others"),
        (lambda folder, _: folder.parents[1].chmod(0o777), "written to by others"),
        (unlinked("config.json"), "cannot read"),
        (lambda folder, _: (folder.parents[2] / "upper" / "theirs").touch(), "is not empty"),
    ],
)
def test_unfit_before_anything_is_touched(
    work: Work,
    snapshot: Path,
    config: SnapshotConfig,
    tmp_path: Path,
    spoil: Spoil,
    words: str,
) -> None:
    spoil(snapshot, config)
    with pytest.raises(Unfit, match=words):
        restore(work)
    (tmp_path / "upper" / "theirs").unlink(missing_ok=True)
    assert untouched(tmp_path)
    assert runc_calls(tmp_path) == []


def test_another_container(work: Work, snapshot: Path, config: SnapshotConfig) -> None:
    swap_config(origin=replace(config.origin, container="sidecar"))(snapshot, config)
    assert make_plan(work).images == snapshot / "criu", "it was named outright"
    with pytest.raises(OtherContainer):
        restore(asked(work, outright=False))


def test_a_folder_that_containerd_named(
    work: Work, snapshot: Path, tmp_path: Path, privileges: list[Path]
) -> None:
    """Without a name it is looked at where it lies; of runc's own there are only the images."""
    moved = tmp_path / "elsewhere"
    snapshot.rename(moved)
    plan = make_plan(asked(work, name="", snapshot=str(moved)))
    assert archive(plan) == moved / "rootfs.tar"
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "files.img").write_bytes(images.image(FILES))
    plan = make_plan(asked(work, name="", snapshot=str(bare)))
    assert (plan.images, plan.difference, plan.volumes) == (bare, None, ())
    assert privileges == [moved / "criu", bare]


def test_what_has_a_name_is_always_judged(work: Work, snapshot: Path) -> None:
    for name in ("config.json", "criu/core-1.img", "criu/files.img"):
        (snapshot / name).unlink()
    (snapshot / "criu").rmdir()
    with pytest.raises(Unfit):
        make_plan(work)


@pytest.mark.parametrize(
    ("made_in", "live", "shared", "policy", "good"),
    [
        ("a", "a", False, "own", True),
        ("a", "b", False, "own", False),
        ("a", "b", True, "own", True),
        ("a", "b", False, "any", True),
        ("", "b", False, "own", False),
        ("a", "", False, "own", False),
    ],
)
def test_another_namespace(
    work: Work,
    snapshot: Path,
    config: SnapshotConfig,
    made_in: str,
    live: str,
    shared: bool,
    policy: str,
    good: bool,
) -> None:
    swap_config(origin=replace(config.origin, namespace=made_in))(snapshot, config)
    if shared:
        (snapshot / "shared").touch()
    path = Path(work.bundle.path) / "config.json"
    notes = {"io.kubernetes.cri.sandbox-namespace": live}
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": notes}))
    settings = {**work.raw["config"], "policy.namespaces": policy}
    if good:
        assert make_plan(asked(work, config=settings)).images == snapshot / "criu"
    else:
        with pytest.raises(Denied):
            make_plan(asked(work, config=settings))


@pytest.mark.parametrize("by", ["annotation", "auto"])
def test_what_another_namespaces_pod_has_made_of_itself(
    work: Work, snapshot: Path, config: SnapshotConfig, by: str
) -> None:
    """Whatever the policy: any pod could have taken the name."""
    origin = replace(config.origin, namespace="a")
    swap_config(origin=origin, maker=replace(config.maker, by=by))(snapshot, config)
    path = Path(work.bundle.path) / "config.json"
    notes = {"io.kubernetes.cri.sandbox-namespace": "b"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": notes}))
    there = asked(work, config={**work.raw["config"], "policy.namespaces": "any"})
    with pytest.raises(Denied, match="nobody but a pod"):
        make_plan(there)
    (snapshot / "shared").touch()
    assert make_plan(there).images == snapshot / "criu"


def test_by_digest(work: Work, snapshot: Path) -> None:
    """What a digest stands for never changes: another manifest, or config, is refused."""
    other = f"one@sha256:{'a' * 64}"
    with pytest.raises(Damaged, match="is not sha256:aaaa"):
        make_plan(asked(work, name=other))
    digest = seal(Stores.of(work.config).first.snapshot(ID))
    assert make_plan(asked(work, name=f"one@{digest}")).images == snapshot / "criu"
    with pytest.raises(Damaged, match="is not sha256:aaaa"):
        make_plan(asked(work, name=other))
    config = (snapshot / "config.json").read_text()
    made = replace(SnapshotConfig.from_json(config, "x"), created="2020-01-01T00:00:00Z")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").write_text(made.to_json())
    assert make_plan(work).images == snapshot / "criu", "nobody asked for the digest"
    with pytest.raises(Damaged, match=f"is not {digest}"):
        make_plan(asked(work, name=f"one@{digest}"))


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The GPU memory library of this installation."""
    path = tmp_path / "libthaw-gpu.so"
    path.write_bytes(b"new")
    monkeypatch.setattr(preload, "installed", lambda: str(path))
    return path


def on_gpu(work: Work, tmp_path: Path) -> Work:
    """A pod that has a GPU, and was given that library at its creation."""
    found = asked(work, config={**work.raw["config"], "gpu.preloaded": str(tmp_path / "versions")})
    spec = found.bundle.spec()
    spec["linux"]["devices"] = [{"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0}]
    spec["mounts"].append({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"})
    contract.provide_library(found.id, spec, {}, found.config)
    assert preload.digest_of(spec)
    found.bundle.save(spec)
    return found


def test_the_version_that_is_mapped(
    work: Work, config: SnapshotConfig, snapshot: Path, library: Path, tmp_path: Path
) -> None:
    """It is mounted for the restore, and this Thaw's own again for a cold boot."""
    pod = on_gpu(work, tmp_path)
    own = preload.digest_of(pod.bundle.spec())
    (tmp_path / "old.so").write_bytes(b"old")
    old = preload.keep(str(tmp_path / "versions"), str(tmp_path / "old.so"))
    origin = origin_of(pod.bundle.spec(), "", "")
    digest = hashlib.sha256(b"old").hexdigest()
    swap_config(origin=replace(origin, library=digest))(snapshot, config)
    plan = make_plan(pod)
    assert plan.library == old
    [step] = [step for step in STEPS if step.name == "library"]
    step.do(pod, plan)
    assert preload.digest_of(pod.bundle.spec()) == digest
    for _ in range(2):
        step.undo(pod, plan)
        assert preload.digest_of(pod.bundle.spec()) == own
    Path(old).unlink()
    with pytest.raises(Unfit, match=f"library {digest} mapped, which is not here"):
        make_plan(pod)
    (snapshot / "criu" / preload.CARRIED).write_bytes(b"old")
    assert make_plan(pod).library == old
    assert Path(old).read_bytes() == b"old", "this node had none"


def test_a_snapshot_without_the_library(
    work: Work, config: SnapshotConfig, snapshot: Path, library: Path, tmp_path: Path
) -> None:
    """A mount that it had not cannot be added."""
    pod = on_gpu(work, tmp_path)
    before = pod.bundle.spec()
    swap_config(origin=replace(origin_of(before, "", ""), library=""))(snapshot, config)
    plan = make_plan(pod)
    assert plan.library == ""
    [step] = [step for step in STEPS if step.name == "library"]
    step.do(pod, plan)
    assert pod.bundle.spec() == preload.without(before)
    step.undo(pod, plan)
    assert pod.bundle.spec() == before


# Doing


class Steps:
    """Steps that only say so, of which one may fail, to do or to undo."""

    def __init__(self, failing: str = "", cause: Exception | None = None) -> None:
        self.said: list[str] = []
        self._failing = failing
        self._cause = cause or RestoreFailed("on purpose")

    def all(self) -> tuple[Step, ...]:
        return tuple(
            Step(name, self._say(f"do {name}"), self._say(f"undo {name}")) for name in "abc"
        )

    def _say(self, what: str) -> Callable[[Work, Plan], None]:
        def act(work: Work, _plan: Plan) -> None:
            assert json.loads(work.marker.read_text())["verb"] == "undo"
            self.said.append(what)
            if what in self._failing.split(","):
                raise self._cause

        return act


def with_steps(monkeypatch: pytest.MonkeyPatch, steps: Steps) -> Steps:
    monkeypatch.setattr(engine, "steps_of", lambda *_: steps.all())
    return steps


def test_all_steps(work: Work, snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = with_steps(monkeypatch, Steps())
    Path(work.bundle.pid_file).write_text("42")
    reply = restore(work)
    assert steps.said == ["do a", "do b", "do c"]
    assert reply["pid"] == 42
    assert list(reply["timeline"]) == ["plan", *PLANNED, "a", "b", "c"]
    assert work.marker.exists(), "until the daemon has heard of it"
    json.dumps(reply)


@pytest.mark.parametrize("cause", [RestoreFailed("on purpose"), OSError(28, "on purpose")])
def test_a_step_that_fails(
    work: Work, snapshot: Path, monkeypatch: pytest.MonkeyPatch, cause: Exception
) -> None:
    """What it had half done is undone too, the last first."""
    steps = with_steps(monkeypatch, Steps("do b", cause))
    with pytest.raises(type(cause), match="on purpose"):
        restore(work)
    assert steps.said == ["do a", "do b", "undo b", "undo a"]
    assert not work.marker.exists()


def test_all_are_taken_back_whatever_fails(work: Work, snapshot: Path) -> None:
    steps = Steps("undo c,undo a")
    work.remember()
    with pytest.raises(RestoreFailed, match="cannot undo c: on purpose; a: on purpose"):
        take_back(steps.all(), work, make_plan(work))
    assert steps.said == ["undo c", "undo b", "undo a"]


def test_what_could_not_be_undone_is_remembered(
    work: Work, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_steps(monkeypatch, Steps("do b,undo a"))
    with pytest.raises(RestoreFailed, match="cannot undo a"):
        restore(work)
    assert work.marker.exists()
    again = with_steps(monkeypatch, Steps())
    assert undo(work) == {}
    assert again.said == ["undo c", "undo b", "undo a"]
    assert not work.marker.exists()


def test_an_error_that_nobody_expected_is_remembered(
    work: Work, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_steps(monkeypatch, Steps("do b", KeyError("x")))
    with pytest.raises(KeyError):
        restore(work)
    assert work.marker.exists()


def noted(folder: Path) -> list[tuple[str, ...]]:
    lines = [json.loads(line) for line in (folder / "audit.log").read_text().splitlines()]
    return [(line["event"], line["outcome"], line.get("reason", "")) for line in lines]


def test_it_is_noted(
    work: Work,
    snapshot: Path,
    config: SnapshotConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {**work.raw["config"], "audit.log": str(tmp_path / "audit.log")}
    work = asked(work, config=settings)
    swap_config(origin=replace(config.origin, container="sidecar"))(snapshot, config)
    store = Stores.of(work.config).first
    Path(work.bundle.pid_file).write_text("42")
    for steps in (Steps(), Steps("do b"), Steps("do b", OSError(28, "full")), Steps("do b,undo a")):
        before = store.snapshot(ID).used
        with_steps(monkeypatch, steps)
        try:
            restore(work)
        except (ThawError, OSError):
            assert store.snapshot(ID).used == before, "it was in vain"
        else:
            assert store.snapshot(ID).used > before
        work.marker.unlink(missing_ok=True)
    with pytest.raises(OtherContainer):
        restore(asked(work, outright=False))
    (snapshot / "criu" / "core-1.img").unlink()
    with pytest.raises(Damaged):
        restore(work)
    assert noted(tmp_path) == [("restore", "restored", "")], "the rest is the daemon's to say"


# The real steps, with processes that are no container's


def test_there_and_gone(work: Work, snapshot: Path, tmp_path: Path) -> None:
    reply = restore(work)
    assert os.path.exists(f"/proc/{reply['pid']}")
    assert Path(work.bundle.rootfs, "changed").read_text() == "by the worker"
    assert (tmp_path / "shm" / "mapped").exists()
    spans = [span["name"] for span in reply["spans"]]
    assert spans == list(reply["timeline"])
    assert [name for name in spans if name not in PARTS] == ["plan", *(s.name for s in STEPS)]
    assert [name for name in spans if name in PARTS] == list(PARTS)
    work.remember()
    undo(work)
    assert not mount_points(str(tmp_path))
    assert not Path(work.bundle.pid_file).exists()


def test_a_runc_that_fails_leaves_nothing(work: Work, snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "runc" / "fail" / "restore").write_text("criu failed")
    with pytest.raises(RestoreFailed, match="criu failed"):
        restore(work)
    (work.folder / "criu.conf").unlink()
    assert untouched(tmp_path)
    assert (snapshot / "rootfs.tar.0000").exists()


@pytest.mark.parametrize("done", range(len(STEPS)))
def test_undone_after_the_engine_was_killed(
    work: Work, snapshot: Path, tmp_path: Path, done: int
) -> None:
    """Another process undoes it, from what the request says: twice, as one may be killed too."""
    plan = make_plan(work)
    work.remember()
    for step in STEPS[:done]:
        step.do(work, plan)
    marker = work.marker.read_text()
    for _ in range(2):
        work.marker.write_text(marker)
        assert undo(asked(work, verb="undo")) == {}
        (work.folder / "criu.conf").unlink(missing_ok=True)
        assert untouched(tmp_path)
        assert not Path(work.bundle.pid_file).exists()
    assert (snapshot / "rootfs.tar.0000").exists()


def test_undone_though_the_snapshot_was_removed(work: Work, snapshot: Path, tmp_path: Path) -> None:
    """The container's own part goes; only what was laid into volumes is not known any more."""
    plan = make_plan(work)
    work.remember()
    for step in STEPS:
        if step.name != "volumes":
            step.do(work, plan)
    shutil.rmtree(snapshot)
    assert undo(asked(work, verb="undo")) == {}
    assert list((tmp_path / "upper").iterdir()) == []
    assert not Path(work.bundle.pid_file).exists()


def test_nothing_to_undo(work: Work, snapshot: Path, tmp_path: Path) -> None:
    """Without a mark nothing was begun: what is there is somebody else's."""
    (tmp_path / "upper" / "theirs").touch()
    (tmp_path / "shm" / "mapped").touch()
    assert undo(work) == {}
    assert (tmp_path / "upper" / "theirs").exists()
    assert (tmp_path / "shm" / "mapped").exists()
    assert runc_calls(tmp_path) == []


def test_the_mark_is_whole_or_not_there(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before it is written, nothing has been begun; half of it could not be read."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            work.remember()
    assert not work.marker.exists()
    work.remember()
    assert work.marker.stat().st_mode & 0o777 == 0o600


def test_an_error_has_words_for_the_log(work: Work) -> None:
    with pytest.raises(ThawError) as caught:
        restore(work)
    assert caught.value.hint


# Sockets


ADDRESSES = ["eth0 10.0.0.7", "eth0 10.0.0.8"]


@pytest.fixture
def pod(work: Work, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pod's network, which is somebody else's namespace, has an address."""
    asked: list[str] = []

    def addresses(path: str) -> list[str]:
        asked.append(path)
        return ["eth0 10.0.0.9"]

    monkeypatch.setattr(namespace, "addresses", addresses)
    for what in ("hold", "let_pass", "release"):  # there is no such namespace
        monkeypatch.setattr(hold, what, lambda path, owner: asked.append(f"{path} of {owner}"))
    monkeypatch.setattr(Hook, "start", lambda *_: None)  # it would look at this machine's network
    path = Path(work.bundle.path) / "config.json"
    spec = json.loads(path.read_text())
    spec["linux"]["namespaces"][1]["path"] = "/run/netns/pod"
    path.write_text(json.dumps(spec))
    return asked


def with_sockets(folder: Path, work: Work, config: SnapshotConfig, *entries: bytes) -> None:
    """The snapshot, of a pod that had two addresses."""
    live = replace(origin_of(work.bundle.spec(), "", ""), addresses=ADDRESSES)
    (folder / "criu" / "files.img").write_bytes(entries_of(*entries))
    files = {"criu/files.img": file_of(entries_of(*entries))}
    made = SnapshotConfig.from_json((folder / "config.json").read_text(), "x")
    swap_config(origin=live, files=made.files | files)(folder, config)


def entries_of(*entries: bytes) -> bytes:
    return images.image(FILES, *entries)


def test_staging_is_told_apart(
    work: Work, snapshot: Path, config: SnapshotConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CRIU gets another image of it, and the fill knows of it."""
    asked: list[tuple[object, ...]] = []

    def images(*about: object) -> dict[str, bytes]:
        asked.append(about)
        return {"mm-1.img": b"advised"}

    monkeypatch.setattr(huge, "images", images)
    monkeypatch.setattr(Device, "expect", lambda *_: None)
    monkeypatch.setattr(Device, "judge", lambda *_: [])
    state = CudaState([CudaProcess(1, [Staging(4096, 4096)])])
    swap_config(gpu=state)(snapshot, config)
    taken: list[object] = []
    take = ReadAhead.take

    def taking(self: ReadAhead, *words: Any, **more: Any) -> Memory:
        taken.append(more["staging"])
        return take(self, *words, **more)

    monkeypatch.setattr(ReadAhead, "take", taking)
    assert make_plan(work).rewritten == {"mm-1.img": b"advised"}
    assert asked == [(snapshot / "criu", work.config, state.processes)]
    assert taken == [state.processes]


def test_sockets_are_moved(
    work: Work, snapshot: Path, config: SnapshotConfig, pod: list[str]
) -> None:
    """In the plan, and in what CRIU is given; the live pod's addresses are not compared."""
    with_sockets(snapshot, work, config, entry(1, "10.0.0.7 80", state=10))
    plan, memory = prepare(work)
    memory.close()
    assert pod == ["/run/netns/pod"]
    assert plan.sockets is not None
    assert plan.sockets.describe() == "1 moved, 0 kept, 0 closed"
    assert "  sockets: 1 moved, 0 kept, 0 closed" in plan.describe()
    del pod[:]
    reply = restore(work)
    assert set(pod) == {"/run/netns/pod", f"/run/netns/pod of {work.id}"}
    assert reply["memory"]["sockets"] == "1 moved, 0 kept, 0 closed"
    given = (work.folder / "images" / "files.img").read_bytes()
    assert states(given) == [("10.0.0.9", 80, 10)]
    work.remember()
    undo(work)
    assert not (work.folder / "images").exists()


def test_a_socket_that_has_nowhere_to_go(
    work: Work, snapshot: Path, config: SnapshotConfig, pod: list[str], tmp_path: Path
) -> None:
    with_sockets(snapshot, work, config, entry(1, "10.0.0.8 80", state=10))
    with pytest.raises(Unfit, match=r"bound to 10\.0\.0\.8:80, which has no counterpart"):
        restore(work)
    assert untouched(tmp_path)


def test_a_file_that_would_be_made(
    work: Work, snapshot: Path, config: SnapshotConfig, tmp_path: Path
) -> None:
    file = pb.File(id=1, reg=pb.RegularFile(id=1, name=b"/etc/x", flags=os.O_CREAT))
    with_sockets(snapshot, work, config, file.encode())
    with pytest.raises(Unfit, match="'/etc/x' would make or truncate it"):
        restore(work)
    assert untouched(tmp_path)
