"""The errors of Thaw, one leaf per thing a caller can do about it.

    ThawError                      code  reason
    ├── InvalidArgument             3    InvalidArgument
    │   ├── BadName                 3    BadSnapshotName
    │   ├── BadAnnotation           3    BadAnnotation
    │   └── BadConfiguration        3    BadConfiguration
    ├── DeadlineExceeded            4    DeadlineExceeded
    ├── NotFound                    5    NotFound
    │   └── NoSuchSnapshot          5    NoSuchSnapshot
    ├── AlreadyExists               6    AlreadyExists
    ├── Denied                      7    Denied            (the operator's policy says no)
    ├── StoreFull                   8    StoreFull
    ├── FailedPrecondition          9    FailedPrecondition
    │   └── Unfit                   9    Unfit
    │       ├── Damaged             9    Damaged
    │       └── OtherContainer      9    OtherContainer
    ├── Cancelled                   1    Cancelled
    ├── Unimplemented              12    Unimplemented
    ├── Unavailable                14    Unavailable
    │   ├── RegistryFailed         14    RegistryFailed
    │   └── RegistrationFailed     14    RegistrationFailed
    └── Unknown                     2    Unknown
        ├── RuntimeFailed           2    RuntimeFailed     (runc said no)
        ├── CheckpointFailed        2    CheckpointFailed
        │   └── TrialFailed         2    TrialFailed       (dumped, but cannot be restored)
        ├── GpuFailed               2    GpuFailed         (the CUDA driver said no)
        │   └── GpuLost             2    GpuLost           (and nothing helps the worker)
        ├── WorkerFailed            2    WorkerFailed      (an action on it went wrong)
        └── RestoreFailed           2    RestoreFailed
            └── CanaryFailed        2    CanaryFailed

`code` is the gRPC status code that containerd maps back to its own errdefs; it branches on
NotFound, FailedPrecondition and Unimplemented, so those three are chosen with care. `reason` is
the CamelCase word that logs, events and metrics carry; `hint` says what to do about it.
"""

from __future__ import annotations


class ThawError(Exception):
    """Anything that Thaw refuses or fails at, with a status code, a reason and a hint."""

    code = 2
    reason = "Unknown"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidArgument(ThawError):
    """The request can never work as it stands."""

    code = 3
    reason = "InvalidArgument"


class BadName(InvalidArgument):
    """A snapshot name that is not a name."""

    reason = "BadSnapshotName"


class BadAnnotation(InvalidArgument):
    """An annotation of ours with a value it cannot have."""

    reason = "BadAnnotation"


class BadConfiguration(InvalidArgument):
    """The operator's configuration cannot be used."""

    reason = "BadConfiguration"


class DeadlineExceeded(ThawError):
    """The caller's or the operator's time is over."""

    code = 4
    reason = "DeadlineExceeded"


class NotFound(ThawError):
    """No such container, exec or process."""

    code = 5
    reason = "NotFound"


class NoSuchSnapshot(NotFound):
    """The store has no snapshot of that name."""

    reason = "NoSuchSnapshot"


class AlreadyExists(ThawError):
    """The id or name is taken."""

    code = 6
    reason = "AlreadyExists"


class Denied(ThawError):
    """The operator's policy does not allow it."""

    code = 7
    reason = "Denied"


class StoreFull(ThawError):
    """There is no room for a snapshot."""

    code = 8
    reason = "StoreFull"


class FailedPrecondition(ThawError):
    """Right request, wrong state."""

    code = 9
    reason = "FailedPrecondition"


class Unfit(FailedPrecondition):
    """The snapshot cannot run here: another image, CPU, kernel, mount."""

    reason = "Unfit"


class Damaged(Unfit):
    """The snapshot's bytes are not what they were."""

    reason = "Damaged"


class OtherContainer(Unfit):
    """The snapshot is of another container of the pod: this one is not meant."""

    reason = "OtherContainer"


class Cancelled(ThawError):
    """A Kill or Delete ended what was under way."""

    code = 1
    reason = "Cancelled"


class Unimplemented(ThawError):
    """A method or option that Thaw does not offer."""

    code = 12
    reason = "Unimplemented"


class Unavailable(ThawError):
    """The other side is gone; asking again may help."""

    code = 14
    reason = "Unavailable"


class RegistryFailed(Unavailable):
    """A registry cannot be reached, or does not do what it should."""

    reason = "RegistryFailed"


class RegistrationFailed(Unavailable):
    """A worker cannot be registered, or is not any longer."""

    reason = "RegistrationFailed"


class Unknown(ThawError):
    """A failure with no better class."""


class RuntimeFailed(Unknown):
    """runc (or what stands in for it) exited non-zero."""

    reason = "RuntimeFailed"


class CheckpointFailed(Unknown):
    """The container could not be dumped; it runs on unless told to exit."""

    reason = "CheckpointFailed"


class TrialFailed(CheckpointFailed):
    """The snapshot was made, tried, and could not be restored: it is not published."""

    reason = "TrialFailed"


class GpuFailed(Unknown):
    """The CUDA driver refused what was asked of it, or failed at it."""

    reason = "GpuFailed"


class GpuLost(GpuFailed):
    """A worker's GPU state cannot be given back: its CUDA calls would hang for ever."""

    reason = "GpuLost"


class RestoreFailed(Unknown):
    """The snapshot was fit but did not come back."""

    reason = "RestoreFailed"


class CanaryFailed(RestoreFailed):
    """The restored worker did not answer its canary, or not rightly."""

    reason = "CanaryFailed"


class WorkerFailed(Unknown):
    """A request to the worker, or a command in its container, went wrong or took too long."""

    reason = "WorkerFailed"
