"""Why the library has no effect: with real programs, for each way that ld.so has not to load it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from shim.config import Config
from shim.gpu import absence, preload
from shim.gpu.absence import forbidden, reason_of

DIGEST = "0" * 64
WAITING = '#include <unistd.h>\nint main(void) { write(1, "x", 1); pause(); return 0; }\n'

Start = Callable[..., int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program, and answers its pid once it runs."""
    begun: list[subprocess.Popen[bytes]] = []

    def run(*argv: str | Path, env: Mapping[str, str] | None = None, **more: Any) -> int:
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            argv, env=env or {}, stdout=pipe, stderr=subprocess.DEVNULL, **more
        )
        begun.append(process)
        assert process.stdout is not None
        assert process.stdout.read(1) == b"x"
        return process.pid

    yield run
    for process in begun:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def compiled(folder: Path, *options: str, source: str = WAITING) -> Path:
    (folder / "source.c").write_text(source)
    path = folder / "made"
    subprocess.run(["cc", *options, "-o", path, folder / "source.c"], check=True)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("library"), "-shared", source="int nothing;\n")


@pytest.fixture
def spec(library: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A container that has the library; its place is where the tests have one."""
    monkeypatch.setattr(preload, "PLACE", str(library))
    monkeypatch.setattr(absence, "PLACE", str(library))
    made: dict[str, Any] = {}
    preload.give(made, preload.path_of("/libraries", DIGEST))
    return made


@pytest.fixture
def env(library: Path) -> dict[str, str]:
    return {"LD_PRELOAD": f"{library}:"}


def reason(pid: int, spec: Mapping[str, Any]) -> str:
    return reason_of(pid, spec, Config())


def test_it_was_not_given() -> None:
    opted = {"annotations": {"thaw.dev/gpu-memory": "driver"}}
    assert reason(0, opted) == "thaw.dev/gpu-memory says driver"
    driver = Config({"gpu.memory": "driver"})
    assert reason_of(0, opted, driver) == reason_of(0, {}, driver) == "gpu.memory says driver"
    assert reason(0, {}).startswith("its container was created without the library")
    both = {"linux": {"devices": [{"path": f"/dev/nvidia{minor}"} for minor in (0, 1)]}}
    assert "several GPUs, and thaw.dev/gpu-memory does not say" in reason(0, both)
    asked = {**both, "annotations": {"thaw.dev/gpu-memory": "library"}}
    assert reason(0, asked) == reason(0, {})


def test_it_is_not_to_move_anything() -> None:
    """Whatever is in the container by now: several GPUs are no such reason."""
    opted = {"annotations": {"thaw.dev/gpu-memory": "driver"}}
    both = {"linux": {"devices": [{"path": f"/dev/nvidia{minor}"} for minor in (0, 1)]}}
    driver = Config({"gpu.memory": "driver"})
    assert forbidden(both, Config()) == ""
    assert forbidden(opted, Config()) == "thaw.dev/gpu-memory says driver"
    assert forbidden(opted, driver) == forbidden(both, driver) == "gpu.memory says driver"


def test_it_is_there_and_idle(
    start: Start, program: Path, spec: dict[str, Any], env: dict[str, str]
) -> None:
    assert "never asked" in reason(start(program, env=env), spec)
    switched = start(program, env={**env, "THAW_GPU_MEMORY": "driver"})
    assert "THAW_GPU_MEMORY=driver" in reason(switched, spec)


@pytest.mark.parametrize(
    ("env", "words"),
    [({}, "is not in its environment"), ({"LD_PRELOAD": "/nowhere/a.so"}, "is another one")],
)
def test_a_wrapper_has_changed_the_environment(
    start: Start, program: Path, spec: dict[str, Any], env: dict[str, str], words: str
) -> None:
    assert f"LD_PRELOAD {words}" in reason(start(program, env=env), spec)


def test_a_static_program(
    start: Start, tmp_path: Path, spec: dict[str, Any], env: dict[str, str]
) -> None:
    pid = start(compiled(tmp_path, "-static"), env=env)
    assert reason(pid, spec) == "its program is statically linked"


def test_a_setuid_program(
    start: Start, tmp_path: Path, program: Path, spec: dict[str, Any], env: dict[str, str]
) -> None:
    """ld.so takes no path with a slash from whom it does not trust."""
    folder = Path("/var/tmp", f"thaw-{os.getpid()}-setuid")  # others may have no way to tmp_path
    folder.mkdir(mode=0o755)
    try:
        path = folder / "made"
        shutil.copy(program, path)
        path.chmod(0o4755)
        pid = start(path, env=env, user=65534, group=65534, extra_groups=[])
        assert "more rights than its parent" in reason(pid, spec)
    finally:
        shutil.rmtree(folder)


def test_a_root_of_its_own(
    start: Start, tmp_path: Path, spec: dict[str, Any], env: dict[str, str]
) -> None:
    compiled(tmp_path, "-static")
    pid = start("/made", env=env, preexec_fn=lambda: os.chroot(tmp_path))
    assert "a root directory of its own" in reason(pid, spec)


def test_a_loader_that_knows_no_such_thing(
    start: Start, program: Path, library: Path, spec: dict[str, Any], env: dict[str, str]
) -> None:
    """What is preloaded cannot be: ld.so says so on stderr, and goes on."""
    library_bytes = library.read_bytes()
    library.write_bytes(b"no library")
    try:
        pid = start(program, env=env)
        assert reason(pid, spec).startswith("its dynamic loader has not loaded the library (ld-")
    finally:
        library.write_bytes(library_bytes)


def test_another_processor(
    start: Start,
    program: Path,
    tmp_path: Path,
    spec: dict[str, Any],
    env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """32-bit programs cannot be built everywhere: one byte tells them apart."""
    pid = start(program, env=env)
    monkeypatch.setattr(absence, "_is_mapped", lambda _: False)
    monkeypatch.setattr(absence, "_ELF64", 3)
    assert "32 bit" in reason(pid, spec)


def test_it_has_ended(start: Start, spec: dict[str, Any]) -> None:
    assert "nobody can tell" in reason(2**22 + 1, spec)
