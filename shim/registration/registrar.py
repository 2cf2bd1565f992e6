"""Keeping one worker registered: tried until it is done, made anew when it was lost."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from shim.conduct import Registration
from shim.errors import RegistrationFailed
from shim.registration.backend import Backend

FIRST, LAST = 0.25, 15.0  # seconds between two attempts, at first and after a while
_JOIN = 1.0  # seconds for the keeper to see that it is over

Say = Callable[[str, str], None]


class Registrar:
    """One registration, from `begin` to `end`; after `begin` a thread of ours does all of it.

    `say` gets what happens ("registered", "failed", "lost") and why, from a thread; of failures
    in a row only the first and what differs from it.
    """

    def __init__(self, backend: Backend, asked: Registration, say: Say) -> None:
        self._backend = backend
        self._asked = asked
        self._say = say
        self._over = threading.Event()
        self._registered = False
        self._seconds = _JOIN
        self._error: RegistrationFailed | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True)

    @property
    def registered(self) -> bool:
        """Whether there is an entry, as far as is known."""
        return self._registered

    def begin(self, seconds: float | None = None) -> str:
        """Try once, then go on in a thread; answers why it is not registered yet, or nothing.

        `seconds` is all the time that the first attempt has, if it is less than any has. Raises
        RegistrationFailed if there must not be a worker that is not registered.
        """
        because, most = "", self._asked.timeout
        try:
            self._register(most if seconds is None else min(most, seconds))
        except RegistrationFailed as error:
            if self._asked.must:
                self._backend.close()
                raise
            because = str(error)
        self._thread.start()
        return because

    def end(self, seconds: float) -> None:
        """Remove the entry. Raises RegistrationFailed; then it stays as long as the registry does.

        It is done by the thread that has kept it, which is where the pod is; an attempt that is
        under way there is awaited, as it may succeed.
        """
        self._seconds = seconds
        self._over.set()
        if self._thread.ident is None:
            return
        self._thread.join(2 * seconds + _JOIN)
        if self._thread.is_alive():
            raise RegistrationFailed("still busy with an attempt to register")
        if self._error is not None:
            raise self._error

    def _keep(self) -> None:
        while not self._over.is_set():
            if not self._registered and not self._registered_at_last():
                break
            try:
                self._backend.keep(self._over)
            except Exception as error:  # noqa: BLE001 - as in _register
                self._registered = False
                self._say("lost", str(_failure(error)))
        try:
            # Also what has failed may have been done: of an answer that was lost nothing is known.
            self._backend.deregister(self._seconds)
        except Exception as error:  # noqa: BLE001 - as in _register
            self._error = _failure(error) if self._registered else None
        finally:
            self._registered = False
            self._backend.close()

    def _registered_at_last(self) -> bool:
        """Try until it is done, or over."""
        pause, last = FIRST, ""
        while not self._over.wait(pause * random.uniform(0.5, 1.0)):  # noqa: S311 - not all at once
            try:
                self._register(self._asked.timeout)
            except RegistrationFailed as error:
                if str(error) != last:
                    last = str(error)
                    self._say("failed", last)
                pause = min(pause * 2, LAST)
                continue
            self._say("registered", "")
            return True
        return False

    def _register(self, seconds: float) -> None:
        # A thread that cannot be started, memory that is not there: nothing may be the end of it.
        try:
            self._backend.register(seconds)
        except Exception as error:
            raise _failure(error) from error
        self._registered = True


def _failure(error: Exception) -> RegistrationFailed:
    if isinstance(error, RegistrationFailed):
        return error
    return RegistrationFailed(f"{type(error).__name__}: {error}")
