"""C code by itself and under the compiler's sanitizers: the filler's, and the driver's calls."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes.cuda import FakeCuda

TOP = Path(__file__).parents[3]
NATIVE = TOP / "native"
PROGRAMS = TOP / "tests" / "native"
WARNINGS = "-Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wundef -Werror"
# What native/fill.h is about.
PARTS = ["fill", "batch", "blob", "filler", "placement", "pool", "queue", "reader", "task"]
KINDS = {
    "plain": ["-O2"],
    "address": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-fsanitize=thread"],
}
SECONDS = 4


def works(options: list[str], folder: Path) -> bool:
    """Whether the compiler can make programs with these options, and this machine can run them."""
    source, program = folder / "empty.c", folder / "empty"
    source.write_text("int main(void) { return 0; }\n")
    made = subprocess.run(
        ["gcc", *options, "-o", program, source], capture_output=True, check=False
    )
    return made.returncode == 0 and run(program).returncode == 0


def run(program: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Without a random layout: ThreadSanitizer before GCC 14 finds no room in some of them."""
    command = ["setarch", "--addr-no-randomize", str(program), *args]
    environment = {
        **os.environ,
        "TSAN_OPTIONS": "halt_on_error=1",
        "ASAN_OPTIONS": "detect_leaks=1",
    }
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture(params=KINDS)
def options(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    chosen = KINDS[request.param]
    if not works(chosen, tmp_path):
        pytest.skip(f"gcc has no {request.param} sanitizer here")
    return chosen


def build(
    name: str, options: list[str], folder: Path, parts: Sequence[str] = ("checksum", *PARTS)
) -> Path:
    program = folder / name
    sources = [NATIVE / f"{part}.c" for part in parts]
    command = ["gcc", "-std=gnu17", "-g", *WARNINGS.split(), *options, f"-I{NATIVE}"]
    subprocess.run(
        [*command, "-o", program, PROGRAMS / f"{name}.c", *sources, "-lpthread"], check=True
    )
    return program


def test_parts(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "nodes").mkdir()
    ran = run(build("parts", options, tmp_path), str(tmp_path / "nodes"))
    assert (ran.returncode, ran.stdout) == (0, "fine\n"), ran.stderr


def test_stress(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    program = build("stress", options, tmp_path)
    ran = run(program, str(tmp_path / "files"), str(SECONDS), "1")
    assert ran.returncode == 0, ran.stderr
    assert sum(int(line.split()[0]) for line in ran.stdout.splitlines()) > 20


def test_driver(options: list[str], tmp_path: Path) -> None:
    cuda = FakeCuda(tmp_path / "cuda", version=13040, storage=True)
    for pid in range(1, 5):
        cuda.add(pid)
    ran = run(build("driver", options, tmp_path, ["cuda"]), cuda.library, str(cuda.folder))
    assert (ran.returncode, ran.stdout) == (0, "fine\n"), ran.stderr
    assert [cuda.state(pid) for pid in range(1, 5)] == ["running"] * 4
    assert len(cuda.asked()) > 1000


def test_the_layout_of_what_the_driver_is_told(tmp_path: Path) -> None:
    header = Path(os.environ.get("THAW_CUDA_HEADER", "/usr/local/cuda/include/cuda.h"))
    if not header.exists():
        pytest.skip(f"no {header}; THAW_CUDA_HEADER may name one")
    options = ["-std=gnu17", *WARNINGS.split(), "-fsyntax-only", f"-isystem{header.parent}"]
    subprocess.run(["gcc", *options, f"-I{NATIVE}", PROGRAMS / "layout.c"], check=True)
