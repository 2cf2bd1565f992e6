"""Whether a snapshot can be restored is found out before anybody can: `checkpoint.verify`.

It is tried beside its original (shim/trial). Where that is not possible the snapshot is published
all the same, and says why it was not tried.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from shim.bundle import write_atomically
from shim.errors import CheckpointFailed, ThawError, TrialFailed
from shim.snapshot.snapshot import CONFIG, open_at
from shim.timeline import Timeline
from shim.work import Work

RESTORED = "restored"
_GONE = 10.0  # seconds within which a trial that nobody waits for is to be over


class Verification:
    """That of one checkpoint, done once; `said` is what became of it: "" if it is not wanted.

    While it lasts, `ends` has what is to be called before this process ends.
    """

    def __init__(
        self, work: Work, timeline: Timeline, ends: list[Callable[[], None]] | None = None
    ) -> None:
        self.said = ""
        self._work = work
        self._timeline = timeline
        self._ends = ends if ends is not None else []

    def check(self, path: Path, stripes: Sequence[Path] = (), images: Path | None = None) -> None:
        """Try the snapshot in a folder, and write into its config document what came of it.

        Arguments are as for snapshot.open_at(). Raises TrialFailed if it cannot be restored.
        """
        if self.said or self._work.config.text("checkpoint.verify") == "none":
            return
        with self._timeline.span("verify"):
            self.said = self._tried(path, stripes, images)
        config = open_at(path, stripes, images).config
        spans = list(self._timeline.spans)
        config = dataclasses.replace(config, verified=self.said, spans=spans)
        write_atomically(str(path / CONFIG), config.to_json().encode())

    def _tried(self, path: Path, stripes: Sequence[Path], images: Path | None) -> str:
        from shim.trial.engine import NotTried, Trial  # a restore's imports: not for every dump

        try:
            trial = Trial(self._work, open_at(path, stripes, images))
            gone = CheckpointFailed("nobody waits for it any longer")
            self._ends.append(lambda: trial.end(gone, _GONE))
            trial.run()
        except NotTried as untried:
            return f"not restored: {untried}"
        except (ThawError, OSError) as error:
            reason, hint = (
                (f"{error.reason}: {error.message}", error.hint)
                if isinstance(error, ThawError)
                else (str(error), "")
            )
            raise TrialFailed(
                "the snapshot cannot be restored, and is not published; "
                f"{self._work.id} runs on: {reason}",
                hint=hint or "see checkpoint.verify",
            ) from error
        return RESTORED
