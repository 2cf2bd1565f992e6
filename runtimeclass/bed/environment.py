"""Python environments in the cache: made once from a list of requirements, anew when it changes.

An environment is complete when its stamp says what it was made from; one that was interrupted has
no stamp and is made again. It is made in its final place, as scripts in it name that place.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bed.fetch import cache_folder

# Never a version manager's wrapper: it costs every start 40 ms, and no container has it.
INTERPRETER = Path("/usr/bin/python3")


def environment(name: str, arguments: Sequence[str], sources: str = "") -> Path:
    """The folder of the environment `name`, with `pip install ARGUMENTS` done in it.

    `sources` is what the arguments stand for, when they name files: any checkout's are as good.
    """
    place = cache_folder() / name
    made_from = sources or repr(list(arguments))
    wanted = hashlib.sha256(repr((made_from, sys.version)).encode()).hexdigest()
    with _locked(place):
        stamp = place / "complete"
        if not stamp.exists() or stamp.read_text() != wanted:
            _make(place, arguments)
            stamp.write_text(wanted)
    return place


def copied(place: Path, target: Path, *left_out: str) -> None:
    """Copy a folder with an environment, in hard links if it can be: nobody rewrites its files.

    Its scripts name the first place. Files whose name is one of `left_out` are not copied.
    """
    ignored = shutil.ignore_patterns(*left_out)
    shutil.copytree(place, target, symlinks=True, ignore=ignored, copy_function=_linked)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def fingerprint(folders: Sequence[Path]) -> str:
    """A hash over names and contents of all files under some folders (or of single files)."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _make(place: Path, arguments: Sequence[str]) -> None:
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([str(INTERPRETER), "-m", "venv", str(place)], check=True)
    command = [str(place / "bin/python"), "-m", "pip", "install", "-qq", *arguments]
    subprocess.run(command, check=True, stdout=sys.stderr)


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.parent / f".{place.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
