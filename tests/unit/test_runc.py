"""What runc is called with, and what its complaints become."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes.pod import FAKES

from shim import spawn
from shim.config import Config
from shim.errors import NotFound, RuntimeFailed
from shim.runc import Runc, runtime_env
from shim.spawn import Completed


class Recorder:
    """In runc's place: keeps the call, answers as it is told."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.argv: list[str] = []
        self.fds: Mapping[int, int] | None = None
        self.status = 0
        self.output = b""
        self.lines: list[str] = []

    def __call__(
        self, argv: Sequence[str], env: Mapping[str, str], fds: Mapping[int, int] | None
    ) -> Completed:
        self.argv, self.fds = list(argv), fds
        with open(self.log, "a") as file:
            file.writelines(line + "\n" for line in self.lines)
        return Completed(argv, self.status, self.output)


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path / "log.json")


def runc(recorder: Recorder, **values: Any) -> Runc:
    return Runc(Config(values), "ns", "c1", str(recorder.log), recorder)


def prefix(recorder: Recorder) -> list[str]:
    root = ["--root", "/run/containerd/runc/ns"]
    return ["runc", *root, "--log", str(recorder.log), "--log-format", "json"]


FDS = {1: 11, 2: 12}
CALLS: list[tuple[Callable[[Runc], object], list[str]]] = [
    (
        lambda r: r.create("/b", "/b/init.pid", FDS),
        ["create", "--bundle", "/b", "--pid-file", "/b/init.pid", "c1"],
    ),
    (
        lambda r: r.create("/b", "/p", {}, "/s/pty"),
        ["create", "--bundle", "/b", "--pid-file", "/p", "--console-socket", "/s/pty", "c1"],
    ),
    (lambda r: r.start(), ["start", "c1"]),
    (
        lambda r: r.exec("/b/e.json", "/b/e.pid", FDS),
        ["exec", "--process", "/b/e.json", "--detach", "--pid-file", "/b/e.pid", "c1"],
    ),
    (
        lambda r: r.restore("/b", "/p", FDS, ["--image-path", "/i"]),
        ["restore", "--detach", "--bundle", "/b", "--pid-file", "/p", "--image-path", "/i", "c1"],
    ),
    (lambda r: r.kill(15), ["kill", "c1", "15"]),
    (lambda r: r.kill(9, everyone=True), ["kill", "--all", "c1", "9"]),
    (lambda r: r.delete(), ["delete", "c1"]),
    (lambda r: r.delete(force=True), ["delete", "--force", "c1"]),
    (lambda r: r.pause(), ["pause", "c1"]),
    (lambda r: r.resume(), ["resume", "c1"]),
    (lambda r: r.update("/r.json"), ["update", "--resources", "/r.json", "c1"]),
    (
        lambda r: r.checkpoint(["--image-path", "/i", "--leave-running"]),
        ["checkpoint", "--image-path", "/i", "--leave-running", "c1"],
    ),
]


@pytest.mark.parametrize(("call", "words"), CALLS, ids=[" ".join(w[:2]) for _, w in CALLS])
def test_calls(recorder: Recorder, call: Callable[[Runc], object], words: list[str]) -> None:
    call(runc(recorder))
    assert recorder.argv == prefix(recorder) + words
    detached = words[0] in ("create", "exec", "restore") and "--console-socket" not in words
    assert recorder.fds == (FDS if detached else {} if words[0] == "create" else None)


def test_global_options(recorder: Recorder) -> None:
    """Restore must get what create got: a lost --systemd-cgroup moves the pod."""
    values = {"SystemdCgroup": True, "Root": "/r", "BinaryName": "/opt/crun"}
    for call in (CALLS[0][0], CALLS[4][0], CALLS[5][0]):
        call(runc(recorder, **values))
        assert recorder.argv[:3] == ["/opt/crun", "--root", "/r/ns"]
        assert recorder.argv[7] == "--systemd-cgroup"


def test_options_of_some_commands(recorder: Recorder) -> None:
    values = {"NoPivotRoot": True, "NoNewKeyring": True}
    CALLS[0][0](runc(recorder, **values))
    assert {"--no-pivot", "--no-new-keyring"} <= set(recorder.argv)
    CALLS[4][0](runc(recorder, **values))
    assert "--no-pivot" in recorder.argv
    assert "--no-new-keyring" not in recorder.argv, "restore has no such option"
    CALLS[2][0](runc(recorder, **values))
    assert "--no-pivot" not in recorder.argv


def entry(level: str, msg: str) -> str:
    return json.dumps({"level": level, "msg": msg, "time": "now"})


def test_the_last_error_in_the_log_counts(recorder: Recorder) -> None:
    recorder.log.write_text(entry("error", "of another call") + "\n")
    recorder.lines = [
        entry("error", "first"),
        entry("error", "the cause"),
        entry("warning", "by the way"),
        "not json",
        "[]",
    ]
    recorder.status, recorder.output = 1, b"what was printed"
    with pytest.raises(RuntimeFailed) as failed:
        runc(recorder).start()
    assert failed.value.message == "runc start c1: the cause"


@pytest.mark.parametrize(
    ("output", "words"), [(b"printed\n", "printed"), (b"", "exit status 3"), (b" ", "status 3")]
)
def test_without_an_error_in_the_log(recorder: Recorder, output: bytes, words: str) -> None:
    recorder.log.write_text(entry("error", "of another call") + "\n")
    recorder.status, recorder.output = 3, output
    with pytest.raises(RuntimeFailed, match=words):
        runc(recorder).start()


@pytest.mark.parametrize(
    "said",
    [
        "container not running",
        "container does not exist",
        'container "c1" does not exist',
        "os: process already finished",
        "unable to signal init: no such process",
    ],
)
def test_what_is_gone_is_not_found(recorder: Recorder, said: str) -> None:
    """containerd tolerates NotFound from Kill, and nothing else."""
    recorder.status, recorder.lines = 1, [entry("error", said)]
    with pytest.raises(NotFound, match="kill c1"):
        runc(recorder).kill(9)
    runc(recorder).delete()  # which is all that was wanted
    runc(recorder).delete(force=True)


def test_a_delete_that_fails(recorder: Recorder) -> None:
    recorder.status, recorder.lines = 1, [entry("error", "device or resource busy")]
    with pytest.raises(RuntimeFailed, match="busy"):
        runc(recorder).delete(force=True)


def test_a_runtime_that_is_not_there(tmp_path: Path) -> None:
    made = Runc(Config({"BinaryName": "/no/runc"}), "ns", "c1", f"{tmp_path}/log", spawn.run)
    with pytest.raises(RuntimeFailed, match="cannot run /no/runc") as failed:
        made.start()
    assert "BinaryName" in failed.value.hint
    assert made.features() == b""


def test_questions() -> None:
    made = Runc(Config({"BinaryName": str(FAKES / "runc.py")}), "ns", "", "/dev/null", spawn.run)
    assert json.loads(made.features()) == {"ociVersionMin": "1.0.0"}
    assert made.version() == "runc version 1.1.5+fake"
    old = Runc(Config({"BinaryName": "false"}), "ns", "", "/dev/null", spawn.run)
    assert old.features() == b""


def test_the_configured_criu_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("OTHER", "stays")
    assert runtime_env(Config())["PATH"] == "/usr/bin"
    env = runtime_env(Config({"criu": "/opt/thaw/criu/sbin/criu"}))
    assert env["PATH"] == "/opt/thaw/criu/sbin:/usr/bin"
    assert env["OTHER"] == "stays"
    assert os.environ["PATH"] == "/usr/bin"
    monkeypatch.delenv("PATH")
    assert "/usr/sbin" in runtime_env(Config())["PATH"].split(":")
