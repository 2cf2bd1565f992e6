"""Signals as in `signal`, whose enums nobody here needs."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from signal import (
        SIG_IGN,
        SIGCHLD,
        SIGINT,
        SIGKILL,
        SIGPIPE,
        SIGTERM,
        set_wakeup_fd,
        signal,
    )
else:
    from _signal import (
        SIG_IGN,
        SIGCHLD,
        SIGINT,
        SIGKILL,
        SIGPIPE,
        SIGTERM,
        set_wakeup_fd,
        signal,
    )

__all__ = [
    "SIGCHLD",
    "SIGINT",
    "SIGKILL",
    "SIGPIPE",
    "SIGTERM",
    "SIG_IGN",
    "set_wakeup_fd",
    "signal",
]
