"""A worker on a GPU as far as tests can tell, of the shape of an inference server's.

    cuda_server.py LIBRARY

A server and its engine process, started by `spawn`, have each called cuInit of the fake driver;
`spawn` brings a third process along that has nothing to do with CUDA. The engine draws a token when
it boots. On SIGUSR1 the server asks it for that, and how often it was asked; neither can say a word
while its CUDA calls are held. If the engine ends the server does, too.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import uuid
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess


def engine(library: str, asked: Connection) -> None:
    """Answer whatever is asked, once the GPU has done its part."""
    driver, token, count = ctypes.CDLL(library), uuid.uuid4(), 0
    driver.cuInit(0)
    while True:
        asked.send(f"token {token} asked {count}")
        asked.recv()
        driver.cuCtxSynchronize()
        count += 1


def follow(process: BaseProcess) -> None:
    """End when it does."""
    process.join()
    os._exit(9)


def main(library: str) -> None:
    """Start the engine, and hand on what it says."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    driver = ctypes.CDLL(library)
    driver.cuInit(0)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=engine, args=(library, theirs))
    process.start()
    threading.Thread(target=follow, args=(process,), daemon=True).start()
    print("booted", ours.recv(), flush=True)
    while True:
        signal.sigwait({signal.SIGUSR1})
        driver.cuCtxSynchronize()
        ours.send(None)
        print(ours.recv(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
