"""The network hook as a process: any program under the OCI hook contract, good or bad."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.settled import PATIENCE, eventually

from shim.bundle import Bundle
from shim.config import Config
from shim.errors import RestoreFailed
from shim.restore import hook as hooks
from shim.restore.hook import Hook

REPORT = '{"steps": [], "warnings": ["no carrier"]}'


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    (tmp_path / "config.json").write_text(json.dumps({"annotations": {"a": "b"}}))
    return Bundle(str(tmp_path))


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    """One that has all the time it wants to end by itself."""
    monkeypatch.setattr(hooks, "_PUT_AWAY", PATIENCE)
    made = Hook()
    yield made
    made.close()


Writer = Callable[[str], Config]


@pytest.fixture
def program(tmp_path: Path) -> Writer:
    """A hook of these lines of shell, as the operator's configuration names it."""

    def write(lines: str) -> Config:
        path = tmp_path / "hook"
        path.write_text(f"#!/bin/sh\ncd {tmp_path}\n{lines}\n")
        path.chmod(0o755)
        return Config({"network.hook": str(path)})

    return write


def run(hook: Hook, config: Config, bundle: Bundle, seconds: float = PATIENCE) -> None:
    hook.start(config)
    hook.run("c1", 4711, bundle, seconds)


def test_it_is_told_of_the_container(hook: Hook, program: Writer, bundle: Bundle) -> None:
    run(hook, program("cat > state"), bundle)
    assert json.loads(Path(bundle.path, "state").read_text()) == {
        "ociVersion": "1.0.2",
        "id": "c1",
        "status": "running",
        "pid": 4711,
        "bundle": bundle.path,
        "annotations": {"a": "b"},
    }
    assert hook.warnings == []


def test_it_waits_for_the_container(hook: Hook, program: Writer, bundle: Bundle) -> None:
    """Started early, and started once: what takes long is done by then."""
    config = program("echo x >> started; cat; echo done > done")
    hook.start(config)
    hook.start(config)
    started, done = Path(bundle.path, "started"), Path(bundle.path, "done")
    eventually(started.exists)
    assert not done.exists()
    run(hook, config, bundle)
    assert done.exists()
    assert started.read_text() == "x\n"


def test_ours_is_done_with_its_report(hook: Hook, program: Writer, bundle: Bundle) -> None:
    """What it repeats afterwards, nobody waits for."""
    os.mkfifo(Path(bundle.path, "gate"))
    run(hook, program(f"cat > state; echo '{REPORT}'; read x < gate; echo > after"), bundle)
    assert hook.warnings == ["no carrier"]
    assert not Path(bundle.path, "after").exists()
    Path(bundle.path, "gate").write_text("\n")
    hook.close()
    assert Path(bundle.path, "after").exists()


@pytest.mark.parametrize(
    "said", ["hello", "{", "{}", '{"warnings": 1}', "[" * 100_000, '{"a":' * 10_000]
)
def test_anothers_may_say_what_it_likes(
    hook: Hook, program: Writer, bundle: Bundle, said: str
) -> None:
    Path(bundle.path, "said").write_text(said + "\n")
    run(hook, program("cat > state; cat said; echo done > done"), bundle)
    assert Path(bundle.path, "done").exists(), "its end was awaited"
    assert hook.warnings == []


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("cat > state; echo no route >&2; exit 3", "ended with status 3: no route"),
        ("echo 'at  once\nor so' >&2; exit 1", "ended with status 1: at once or so"),
        ("kill -9 $$", "ended with signal 9"),
    ],
)
def test_it_says_no(hook: Hook, program: Writer, bundle: Bundle, lines: str, said: str) -> None:
    with pytest.raises(RestoreFailed, match=said):
        run(hook, program(lines), bundle)


@pytest.mark.parametrize("before", ["", "cat > state; exec >&- 2>&-;"])
def test_it_hangs(hook: Hook, program: Writer, bundle: Bundle, before: str) -> None:
    config = program(f"{before} exec sleep 1000")
    hook.start(config)
    assert hook._process is not None
    with pytest.raises(RestoreFailed, match=r"not done after 0\.1 s, killed") as raised:
        hook.run("c1", 4711, bundle, 0.1)
    assert "network.timeout" in raised.value.hint
    assert hook._process.wait(PATIENCE) == -9


@pytest.mark.parametrize("name", ["/nowhere/hook", "no-such-hook"])
def test_it_is_not_there(hook: Hook, bundle: Bundle, name: str) -> None:
    config = Config({"network.hook": name})
    hook.start(config)
    with pytest.raises(RestoreFailed, match="No such file") as raised:
        run(hook, config, bundle)
    assert name in raised.value.message
    assert "network.hook" in raised.value.hint


def test_none_is_wanted(hook: Hook, bundle: Bundle) -> None:
    run(hook, Config({"network.hook": ""}), bundle)


def test_it_goes_when_it_is_not_needed(hook: Hook, program: Writer) -> None:
    hook.start(program("exec cat"))
    assert hook._process is not None
    process = hook._process
    hook.close()
    assert process.returncode == 0
    hook.close()


def test_ours_waits_beside_the_interpreter(hook: Hook) -> None:
    """Closed with nothing said, it ends by itself."""
    hook.start(Config())
    assert hook._process is not None
    process = hook._process
    hook.close()
    assert process.returncode in (1, -9)
    assert hook._program.endswith("/bin/thaw-hook-network")


@pytest.mark.parametrize("reads", ["cat > state", "exec sleep 1000"])
def test_more_than_a_pipe_takes(hook: Hook, program: Writer, bundle: Bundle, reads: str) -> None:
    """Annotations may have 256 KiB: a hook that does not read them has its time and no more."""
    Path(bundle.config).write_text(json.dumps({"annotations": {"a": "b" * 200_000}}))
    if reads.startswith("cat"):
        run(hook, program(reads), bundle)
        state = json.loads(Path(bundle.path, "state").read_text())
        assert len(state["annotations"]["a"]) == 200_000
        return
    began = time.monotonic()
    with pytest.raises(RestoreFailed, match=r"not done after 0\.1 s, killed"):
        run(hook, program(reads), bundle, 0.1)
    assert time.monotonic() - began < PATIENCE


def test_one_that_closes_its_input(hook: Hook, program: Writer, bundle: Bundle) -> None:
    Path(bundle.config).write_text(json.dumps({"annotations": {"a": "b" * 200_000}}))
    run(hook, program("exec 0<&-; echo done > done"), bundle)
    assert Path(bundle.path, "done").exists()
