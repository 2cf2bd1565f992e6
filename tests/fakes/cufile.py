"""cuFile without GPUDirect Storage: tests/fakes/libcufile.c, built, in the world of a FakeCuda."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fakes.cuda import SHARED, FakeCuda, compiled

_HERE = Path(__file__).parent
_SOURCES = (_HERE / "libcufile.c", _HERE / "libcuda_world.c")


@functools.cache
def _built(without: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        library, script = Path(folder) / "libcufile.so.0", Path(folder) / "script"
        hidden = f"{without};" if without else ""
        script.write_text(f"{{ global: cuFile*; fake*; local: {hidden} *; }};\n")
        objects = compiled(_SOURCES, Path(folder), *SHARED)
        shape = ("cc", "-shared", "-pthread", f"-Wl,--version-script={script}")
        subprocess.run([*shape, "-o", library, *objects], check=True)
        return library.read_bytes()


class FakeCufile:
    """A library in the folder of `cuda`. `without`: a function that it lacks."""

    def __init__(self, cuda: FakeCuda, *, without: str = "") -> None:
        self._folder = cuda.folder
        self._path = cuda.folder / f"libcufile{without}.so.0"
        if not self._path.exists():  # else this process may have it loaded
            self._path.write_bytes(_built(without))

    @property
    def library(self) -> str:
        """What is to be opened."""
        return str(self._path)

    def answer(self, call: str, *results: int) -> None:
        """What `call` answers, in turn, and then always the last one.

        Of cuFileRead: errno, an error of cuFile's (above 5000), or 0 as at the end of a file.
        """
        lines = [f"{result} once" for result in results[:-1]] + [f"{results[-1]} always"]
        (self._folder / "answers" / call).write_text("\n".join(lines) + "\n")

    @property
    def is_open(self) -> bool:
        """Whether this process uses it."""
        return bool(ctypes.CDLL(self.library).fakeIsOpen())

    def is_so(self, name: str, content: str = "") -> None:
        """From now on: see libcufile.c."""
        (self._folder / name).write_text(content)

    @contextmanager
    def held(self, call: str) -> Iterator[None]:
        """A block in which `call` does not come to its end."""
        held = self._folder / "holds" / call
        held.touch()
        try:
            yield
        finally:
            held.unlink()
