"""What is read into the cache, one snapshot after another, while others are copied from there."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path

from shim import log
from shim.cache.intake import Intake
from shim.cache.store import Store
from shim.config import Config
from shim.errors import Cancelled, StoreFull, ThawError
from shim.snapshot.store import Stores

RECENTLY = 600.0  # seconds: what was used since goes for what is asked for, but not for a guess


class Job:
    """A snapshot that shall come in; `error` is why it has not, once it has ended."""

    def __init__(self, intake: Intake, asked: bool) -> None:
        self.intake = intake
        self.asked = asked  # by somebody who waits for it; otherwise it is a guess
        self.ended = threading.Event()
        self.error: Exception | None = None


class Reading:
    """The queue, and the thread that works on it."""

    def __init__(self, config: Config, store: Store, threads: int) -> None:
        self._config = config
        self._store = store
        self._threads = threads
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._now: Job | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, path: Path, *, asked: bool) -> Job:
        """Have a snapshot of the stores read in. Raises NoSuchSnapshot, Unfit and Damaged."""
        store, id = Stores.of(self._config).at(path)
        intake = Intake.of(store.snapshot(id), idle=0.0 if asked else RECENTLY)
        with self._changed:
            if self._closed:
                raise Cancelled("the cache is being closed")
            for job in [*self._queue, *filter(None, [self._now])]:
                if job.intake.key == intake.key and job.asked >= asked:
                    return job
            job = Job(intake, asked)
            self._queue.append(job)
            self._changed.notify_all()
            return job

    def close(self) -> None:
        """Give up what is under way and what is to come; waits for the end."""
        with self._changed:
            self._closed = True
            for job in self._queue:
                job.error = Cancelled(f"{job.intake.path} was not read into the cache")
                job.ended.set()
            self._queue.clear()
            if self._now is not None:
                self._now.intake.cancel()
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                job.intake.run(self._store, self._threads)
                log.info("a snapshot is in the cache", path=job.intake.path, bytes=job.intake.total)
            except (ThawError, OSError) as error:
                job.error = error
                tell = log.warning if job.asked or not isinstance(error, StoreFull) else log.info
                tell("a snapshot is not in the cache", path=job.intake.path, reason=str(error))
            except Exception as error:  # noqa: BLE001 - the next one may be better
                job.error = error
                log.exception(error)
            job.ended.set()

    def _next(self) -> Job | None:
        with self._changed:
            self._now = None
            self._changed.wait_for(lambda: bool(self._queue) or self._closed)
            if self._closed:
                return None
            self._now = self._queue.popleft()
            return self._now
