"""What every registry of workers can do, as far as we are concerned."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod


class Backend(ABC):
    """One worker's entry in one registry."""

    @abstractmethod
    def register(self, seconds: float) -> None:
        """Make the entry, or make it anew. Raises RegistrationFailed, within so many seconds."""

    @abstractmethod
    def deregister(self, seconds: float) -> None:
        """Remove the entry; one that is not there is no error. Raises RegistrationFailed."""

    def keep(self, over: threading.Event) -> None:
        """Keep the entry until `over` is set. Raises RegistrationFailed once it is lost."""
        over.wait()

    def close(self) -> None:  # noqa: B027 - most have none
        """Close connections; the entry stays."""
