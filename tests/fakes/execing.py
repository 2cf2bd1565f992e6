"""What `runc exec` does: runs a command in a session of its own, and ends as it does.

It leaves the command alone when it is killed, as runc does.
"""

from __future__ import annotations

import os
import sys


def main(argv: list[str]) -> int:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.execvp(argv[0], argv)
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
