"""What `runc exec` does: execing.py PID-FILE COMMAND… runs it in a session of its own.

It ends as the command does, once nobody has the output open any longer, as runc does; and it leaves
the command alone when it is killed.
"""

from __future__ import annotations

import os
import sys
import threading


def main(pid_file: str, argv: list[str]) -> int:
    pipes = [(number, *os.pipe()) for number in (1, 2)]
    pid = os.fork()
    if pid == 0:
        os.setsid()
        for number, _, child in pipes:
            os.dup2(child, number)
        os.execvp(argv[0], argv)
    with open(pid_file, "w") as file:
        file.write(str(pid))
    copiers = []
    for number, ours, child in pipes:
        os.close(child)
        copiers.append(threading.Thread(target=copy, args=(ours, number)))
        copiers[-1].start()
    status = os.waitpid(pid, 0)[1]
    for copier in copiers:
        copier.join()
    return os.waitstatus_to_exitcode(status) & 0xFF


def copy(source: int, target: int) -> None:
    while data := os.read(source, 65536):
        os.write(target, data)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
