"""The GPU memory library under the compiler's sanitizers, as part of a program with threads."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.cuda import FakeCuda
from fakes.gpu import Program
from fakes.gpu_conversation import Conversation

NATIVE = Path(__file__).parents[3] / "native" / "gpu"
# dlsym stays the sanitizer's own: this program is linked with libcuda.
SOURCES = [str(path) for path in sorted(NATIVE.glob("*.c")) if path.name != "dlsym.c"]
SHAPE = ["-DTHAW_GPU_HOSTED", "-ffreestanding", "-fno-strict-aliasing", "-no-pie", *SOURCES]
KINDS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
NO_RANDOM_LAYOUT = 0x0040000  # personality(2): ADDR_NO_RANDOMIZE


def works(options: list[str], folder: Path) -> bool:
    """Whether the compiler can make such programs, and this machine can run them."""
    source, program = folder / "empty.c", folder / "empty"
    source.write_text("int main(void) { return 0; }\n")
    command = ["cc", *options, "-no-pie", "-o", str(program), str(source)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return False
    return subprocess.run([program], capture_output=True, check=False).returncode == 0


@pytest.fixture
def fixed_layout(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For what is started: ThreadSanitizer before GCC 14 finds no room in some layouts."""
    monkeypatch.setenv("TSAN_OPTIONS", "halt_on_error=1")
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")
    libc = ctypes.CDLL(None)
    before = libc.personality(NO_RANDOM_LAYOUT)
    yield
    libc.personality(before)


@pytest.mark.usefixtures("fixed_layout")
@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_an_engine_at_the_same_time(tmp_path: Path, kind: str) -> None:
    if not works(KINDS[kind], tmp_path):
        pytest.skip(f"cc has no {kind} sanitizer here")
    options = tuple(KINDS[kind] + SHAPE)
    with Program(FakeCuda(tmp_path), "linked", options=options) as program:
        numbers = [program.number(command) for command in ("alloc 4M", "plain 2M", "alloc 4K")]
        program.ask("spin 1")
        program.tell("threads 4 25 2M")
        with Conversation(program.pid) as library:
            for count in range(8):
                if count == 4:
                    (tmp_path / "own-only").touch()  # from here on, all is copied to other memory
                library.moved()
                assert library.about().left == {"small": 4096}
        assert program.answer() == "done"
        program.ask("rest")
        program.ask(f"capture {numbers[0]} 1")
        program.ask("replay")
        for number in numbers:
            program.ask(f"free {number}")
        assert program.end() == (0, "")
