"""The daemon's log: one logfmt line per fact, into the FIFO that containerd reads.

containerd makes `log` in the bundle and copies what it reads into its own log. The FIFO is opened
for reading too: a containerd that is restarting must neither block nor kill us; what nobody reads
is dropped once the pipe is full.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_ATOMIC = 4096  # bytes; PIPE_BUF: what is longer could be torn apart

LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}

_sink = 2
_threshold = LEVELS["info"]


def open_fifo(path: str) -> None:
    """Send the log to containerd's FIFO at `path`; without one, the log goes nowhere."""
    global _sink
    try:
        _sink = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        _sink = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)


def set_level(level: str) -> None:
    """Drop what is less important than `level`: debug, info, warning or error."""
    global _threshold
    _threshold = LEVELS[level]


def debug(message: str, **fields: object) -> None:
    """Something only a developer of Thaw wants to know."""
    _write("debug", message, fields)


def info(message: str, **fields: object) -> None:
    """Something an operator may want to know."""
    _write("info", message, fields)


def warning(message: str, **fields: object) -> None:
    """Something went wrong and was dealt with."""
    _write("warning", message, fields)


def error(message: str, **fields: object) -> None:
    """Something went wrong and somebody must know."""
    _write("error", message, fields)


def exception(error: BaseException, message: str = "unexpected error", **fields: object) -> None:
    """An error nobody expected, with where it came from."""
    where = _innermost(error.__traceback__)
    _write("error", message, {**fields, "error": f"{type(error).__name__}: {error}", "at": where})


def _innermost(trace: TracebackType | None) -> str:
    frames = []
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{os.path.basename(code.co_filename)}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return " < ".join(reversed(frames[-6:]))


def _write(level: str, message: str, fields: dict[str, object]) -> None:
    if LEVELS[level] < _threshold:
        return
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    words = [f'time="{stamp}"', f"level={level}", f"msg={_quote(message)}"]
    words += [f"{key}={_quote(str(value))}" for key, value in fields.items() if value != ""]
    line = " ".join(words) + "\n"
    data = line.encode("utf-8", "replace")
    if len(data) > _ATOMIC:
        data = data[: _ATOMIC - 5] + b'..."\n'
    try:
        os.write(_sink, data)  # whole, or not at all
    except OSError:
        pass  # a log that nobody reads must not hurt the container


def _quote(text: str) -> str:
    if text and all(c.isalnum() or c in "-_./:@%+," for c in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    if not escaped.isprintable():  # what a pod's annotation says may reach somebody's terminal
        escaped = "".join(c if c.isprintable() else repr(c)[1:-1] for c in escaped)
    return f'"{escaped}"'
