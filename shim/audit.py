"""The audit log: a line for each snapshot that was made, restored, refused, moved or removed.

One JSON object per line, in the file that the operator's `audit.log` names: `time` (RFC 3339, UTC),
`event` (create, restore, refuse, remove, pull, push, tag, share; end: of a worker whose GPU state
was lost over a snapshot), `who` asked, and what is known of `name`, `id`, `digest`, `container`,
`pod`, `namespace`, `outcome`, `reason`, and `gpu`: by whom GPU memory was saved, the library or the
driver, and why by that. Values are escaped to ASCII, so nothing in them begins
another line or steers a terminal. Environment variables, arguments and other contents of a worker
never belong here: names and reasons only.

Whatever is wrong with the file, the work that is recorded goes on.
"""

from __future__ import annotations

import os
import stat
import time

from shim import log
from shim.lean import jsons

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.config import Config

_LONGEST = 1024  # characters of a value: a line stays small enough for one write
_LOGIN = "/proc/self/loginuid"
_NOBODY = 0xFFFFFFFF  # loginuid of what no login has started

_warned = False


def record(config: Config, event: str, **fields: str) -> None:
    """Append a line; `who` is the operator unless it is given. Empty fields are left out.

    Never raises. That it did not work is said once, in the daemon's log.
    """
    global _warned
    path = config.text("audit.log")
    if not path:
        return
    try:
        _append(path, _line(event, fields))
    except (OSError, ValueError) as error:
        if not _warned:
            _warned = True
            log.warning("audit log not written", path=path, error=str(error), event=event)


def operator() -> str:
    """Who runs this process: its uid, who became root by sudo, and who had logged in."""
    words = [f"uid {os.getuid()}"]
    if sudo := os.environ.get("SUDO_USER", ""):
        words.append(f"sudo {sudo}")
    login = _login()
    if login is not None:
        words.append(f"login {login}")
    return ", ".join(words)


def _login() -> int | None:
    """The kernel's note of the login, which survives sudo and su; proc_pid_loginuid(5)."""
    try:
        with open(_LOGIN, "rb") as file:
            login = int(file.read())
    except (OSError, ValueError):  # a kernel without auditing
        return None
    return None if login == _NOBODY else login


def _line(event: str, fields: dict[str, str]) -> bytes:
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    made = {"time": f"{stamp}.{int(now % 1 * 1000):03}Z", "event": event}
    made["who"] = fields.pop("who", "") or operator()
    made.update((name, str(value)) for name, value in fields.items() if value)
    return jsons.dumps({name: value[:_LONGEST] for name, value in made.items()}) + b"\n"


def _append(path: str, line: bytes) -> None:
    fd = _open(path)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("not a regular file")
        # One call: lines of several processes do not get into each other (O_APPEND).
        if os.write(fd, line) != len(line):
            raise ValueError("the line was cut off: no space left")
    finally:
        os.close(fd)


def _open(path: str) -> int:
    # Not blocking: if the file is a FIFO after all, nobody waits for its reader.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path) or ".", 0o700, exist_ok=True)
        return os.open(path, flags, 0o600)
