"""A container's way back from a snapshot, as the daemon sees it.

The engine does the work; here stand its deadline, its cancellation, and what follows a failure:
undo, one log line with the reason, and the cold boot or the refusal. Undoing is a verb of a fresh
engine process and works from the request alone, so that it does not matter at which point the
first one died.
"""

from __future__ import annotations

import time

from shim import log
from shim.bundle import annotations_of
from shim.errors import (
    Cancelled,
    Denied,
    InvalidArgument,
    NoSuchSnapshot,
    NotFound,
    OtherContainer,
    RestoreFailed,
    ThawError,
    Unfit,
)
from shim.reference import AUTO
from shim.task.contract import has_gpus
from shim.task.dumping import is_marked, unmark
from shim.task.engine import Engine
from shim.task.process import Console
from shim.task.source import note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.task.container import Container
    from shim.task.host import Host
    from shim.task.source import Source

COLD_SHARE = 0.5  # of the caller's time is kept for the cold boot, …
COLD_MOST = 30.0  # … but no more than this, in seconds
UNDO_TIMEOUT = 20.0  # seconds
PASS_ON = 2.0  # seconds for what a failed restore has written to get to whoever reads it
SHOWN = 2048  # bytes of that in the shim's log; a line holds no more than twice as many
BEGUN = "restoring"  # in the container's folder while a restore is under way; see work.py
RUNS = "restored"  # and from when on processes may run, and what is written may be theirs


class Restoration:
    """One restore: prepared by Create, attempted once by Start, cancelled by Kill or Delete."""

    def __init__(self, host: Host, source: Source) -> None:
        self._host = host
        self._source = source
        self._engine: Engine | None = None
        self._cancelled = False
        self._over = False
        self.unfit = False  # the snapshot is there, and cannot be restored here

    def prepare(self, env: dict[str, str]) -> None:
        """Start the engine, so that its imports are done when Start comes."""
        self._engine = self._host.engines.take(env, self._source.name)

    def pids(self) -> list[int]:
        """The engine's process, while it is there."""
        return [self._engine.pid] if self._engine is not None else []

    def attempt(self, container: Container, deadline: float | None) -> bool:
        """Restore `container`; True if it runs, False if it shall boot cold.

        Raises Cancelled, or the reason if there must be no cold boot; the container is stopped
        then. Whatever was made is undone before this returns without success.
        """
        began = time.monotonic()
        try:
            reply = self._ask(container, deadline)
        except ThawError as error:
            self._give_up(container, error)
            from shim.task.adjusting import give_back  # with what of a GPU's is for restores only

            give_back(container.bundle)
            return False
        _forget(container)  # from here on there is nothing to be undone
        self._leave()
        container.init.pid = int(reply["pid"])
        container.identity = reply["identity"]
        assert container.init.stdio is not None
        container.init.stdio.started()
        container.init.stdio.release()
        spans = " ".join(f"{name}={seconds:.3f}" for name, seconds in reply["timeline"].items())
        for text in reply["warnings"]:
            log.warning("restored, but", container=container.id, because=text)
        log.info(
            "restored",
            container=container.id,
            snapshot=self._source.name or self._source.path,
            seconds=f"{time.monotonic() - began:.3f}",
            timeline=spans,
            **reply["memory"],
        )
        return True

    @property
    def cancelled(self) -> bool:
        """Whether Kill or Delete came before the container ran."""
        return self._cancelled

    def cancel(self) -> None:
        """End the attempt under way, or the one to come."""
        self._cancelled = True
        if self._engine is not None and not self._over:
            self._engine.kill()

    def close(self) -> None:
        """The engine is not needed any longer."""
        engine, self._engine = self._engine, None
        self._over = True
        if engine is not None:
            engine.release()

    def _leave(self) -> None:
        """The engine has answered, and ends by itself once it has put away what it used."""
        engine, self._engine = self._engine, None
        self._over = True
        if engine is not None:
            engine.leave()

    def put_away(self, container: Container) -> None:
        """At Delete: nothing stays of a restore, even of one that could not be undone before."""
        self.close()
        undone = self._undo(container)
        if undone is not None:
            log.error("a restore could not be undone", container=container.id, undo=undone)

    def _hand_on(self, container: Container) -> None:
        """Leave the engine, and what it has read ahead, to the container that is meant."""
        engine, self._engine = self._engine, None
        self._over = True
        if engine is not None:
            spec = container.bundle.spec()
            if has_gpus(spec, annotations_of(spec), container.config):
                engine.give_way()
            self._host.engines.give_back(engine, self._source.name)

    def _ask(self, container: Container, deadline: float | None) -> dict[str, Any]:
        engine = self._engine
        if self._cancelled or engine is None:
            raise Cancelled("cancelled by Kill or Delete")
        stdio = container.init.stdio
        assert stdio is not None
        fds = stdio.child_fds
        request = describe(container, self._host)
        request["verb"] = "restore"
        request["snapshot"] = self._source.path
        request["name"] = self._source.name
        request["outright"] = self._source.outright
        request["fds"] = list(fds)
        seconds = self._seconds(container, deadline)
        if not container.init.streams.terminal:
            return engine.ask(request, list(fds.values()), seconds)
        with Console(container.config.text("state")) as console:
            reply = engine.ask({**request, "console": console.path}, [], seconds)
            stdio.attach_console(console.receive())
            return reply

    def _seconds(self, container: Container, deadline: float | None) -> float:
        allowed = container.config.number("restore.deadline")
        if deadline is None:
            return allowed
        left = deadline - time.monotonic()
        return max(0.0, min(allowed, left - min(COLD_MOST, left * COLD_SHARE)))

    def _give_up(self, container: Container, error: ThawError) -> None:
        first = self._source.name == AUTO and isinstance(error, NoSuchSnapshot)
        if first and not self._cancelled:
            log.info("no snapshot yet", container=container.id, snapshot=error.message)
            self.close()
            return
        if isinstance(error, OtherContainer) and not self._cancelled:
            log.info("another container is meant", container=container.id, error=error.message)
            self._hand_on(container)
            return
        self.unfit = isinstance(error, Unfit)
        if self._engine is not None:
            self._engine.end()  # it may still be at work: nothing is undone under its hands
        self.close()
        _drop_complaints(container)
        undone = self._undo(container)
        refuse = self._source.must or self._cancelled or undone is not None
        fields = {
            "container": container.id,
            "snapshot": self._source.name or self._source.path,
            "reason": error.reason,
            "hint": error.hint,
            "error": error.message,
        }
        self._note(container, error, "failed" if refuse else "cold boot")
        if undone is not None:
            log.error("restore failed and could not be undone", undo=undone, **fields)
        elif self._cancelled:
            log.info("restore cancelled", **fields)
        else:
            log.warning("not restored" if refuse else "booting cold", **fields)
        if refuse:
            _pass_on(container)
            container.stop_unstarted(128 + 9)
            raise undone or error
        _show(container)

    def _note(self, container: Container, error: ThawError, outcome: str) -> None:
        """Whatever became of the engine: the audit log has a line of it."""
        refused = isinstance(error, (Unfit, Denied, NotFound, InvalidArgument))
        event = "refuse" if refused else "restore"
        path, name = self._source.path, self._source.name
        id = path.rpartition("/")[2] if name else ""
        notes = annotations_of(container.bundle.spec())
        note(event, container.config, container.id, name or path, notes, error, outcome, id)

    def _undo(self, container: Container) -> ThawError | None:
        """Remove all that the attempt has made. Returns the error if that fails too."""
        if not is_marked(container.folder, BEGUN):
            return None  # refused before anything was touched
        engine = None
        try:
            engine = Engine(self._host.reaper, container.runc.env)
            request = describe(container, self._host)
            request["verb"] = "undo"
            engine.ask(request, [], UNDO_TIMEOUT)
        except ThawError as error:
            return RestoreFailed(f"cannot clean up: {error.message}", hint=error.hint)
        finally:
            if engine is not None:
                engine.close()
        return None


def _drop_complaints(container: Container) -> None:
    """Before a process ran, runc alone has written: its log has that, too, and our error says it.

    Here and not in the engine, which may have been killed: runc still complains of that then.
    """
    stdio = container.init.stdio
    assert stdio is not None
    if not is_marked(container.folder, RUNS):
        stdio.withheld(SHOWN)
    unmark(container.folder, RUNS)


def _pass_on(container: Container) -> None:
    """What a worker wrote before it failed goes where its output belongs, before Start is refused.

    containerd no longer waits for a stream then that nobody has opened. It does for one that has
    been, so that none may stay open, should a process that cannot be ended still hold the pipe.
    """
    stdio = container.init.stdio
    assert stdio is not None
    stdio.started()
    try:
        stdio.deliver(PASS_ON)
    except (ThawError, OSError) as error:  # a containerd that was restarted removes its FIFOs
        log.warning("its output is lost", container=container.id, error=error)
    stdio.close()


def _show(container: Container) -> None:
    """The log of a container that boots cold has its own output only.

    Not that of a worker that went another way: whoever reads both as one would be misled.
    """
    from shim.worker.readable import end_of

    stdio = container.init.stdio
    assert stdio is not None
    output = end_of(stdio.withheld(SHOWN), SHOWN)
    if output:
        log.warning("what the failed restore has written", container=container.id, output=output)


def _forget(container: Container) -> None:
    unmark(container.folder, BEGUN)
    unmark(container.folder, RUNS)


def describe(container: Container, host: Host) -> dict[str, Any]:
    """What an engine needs to know of a container, as plain data."""
    return {
        "id": container.id,
        "namespace": host.namespace,
        "bundle": container.bundle.path,
        "folder": container.folder,
        "rootfs": container.rootfs.as_list(),
        "terminal": container.init.streams.terminal,
        "config": container.config.as_dict(),
        "containerd": host.grpc_address,
    }
