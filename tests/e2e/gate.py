"""A CRIU that stops at a stage of its work until the test lets it go on.

The real CRIU runs; an action-script of ours, given through CRIU_CONFIG_FILE by a wrapper that the
`criu` key of Thaw's configuration names, waits at the stage. So whatever is done meanwhile is done
in the middle of a dump or a restore, every time.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bed.config import thaw_config
from bed.fetch import criu
from bed.lane import Lane

_WRAPPER = """\
#!/bin/sh
CRIU_CONFIG_FILE={folder}/criu.conf exec {criu} "$@"
"""
_SCRIPT = """\
#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = {stage} ] || exit 0
echo > {folder}/reached
read -r _ < {folder}/gate
"""


class Gate:
    """One stage at which CRIU waits."""

    def __init__(self, folder: Path) -> None:
        self._reached = os.open(folder / "reached", os.O_RDWR | os.O_NONBLOCK)
        # Held open, so that the word to go on waits for who has not come to read it yet.
        self._gate = os.open(folder / "gate", os.O_RDWR | os.O_NONBLOCK)

    def wait(self, seconds: float = 60) -> None:
        """Wait until CRIU has come to the stage."""
        if not select.select([self._reached], [], [], seconds)[0]:
            raise TimeoutError(f"CRIU has not come to its stage in {seconds} s")
        os.read(self._reached, 1)

    def open(self) -> None:
        """Let the one who waits go on; harmless if nobody does."""
        os.write(self._gate, b"\n")

    def close(self) -> None:
        """Let everyone go."""
        self.open()
        os.close(self._reached)
        os.close(self._gate)


@contextmanager
def gate(lane: Lane, stage: str, more: str = "") -> Iterator[Gate]:
    """Containers created in the block have a CRIU that waits at `stage`."""
    folder = lane.places.folder / f"gate-{stage}"
    folder.mkdir(exist_ok=True)
    for name in ("reached", "gate"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
    (folder / "criu.conf").write_text(f"action-script {folder}/script\n")
    _program(folder / "criu", _WRAPPER.format(folder=folder, criu=criu()))
    _program(folder / "script", _SCRIPT.format(folder=folder, stage=stage))
    with configured(lane, folder / "criu", more):
        held = Gate(folder)
        try:
            yield held
        finally:
            held.close()


@contextmanager
def configured(lane: Lane, program: Path, more: str = "") -> Iterator[None]:
    """Containers created in the block have this CRIU; `more` is TOML for Thaw's configuration."""
    before = lane.places.thaw_config.read_text()
    lane.places.thaw_config.write_text(thaw_config(lane.places, program) + more)
    try:
        yield
    finally:
        lane.places.thaw_config.write_text(before)


def fake_criu(lane: Lane, name: str, text: str) -> Path:
    """A program of the test's own in the place of CRIU; {criu} in `text` is the real one."""
    folder = lane.places.folder / f"criu-{name}"
    folder.mkdir(exist_ok=True)
    _program(folder / "criu", "#!/bin/sh\n" + text.format(criu=criu()))
    return folder / "criu"


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
