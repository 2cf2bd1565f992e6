"""An example worker as there are others: it polls for files, and knows nothing else of Thaw.

It does what NVIDIA Dynamo's workers do: it gets warm, says so in the control directory if it has
been given one (by either name), and looks ten times a second whether it shall exit or go on. Only
then does it open its port. Without a control directory it just serves.

    polling.py           listens on 0.0.0.0:8000 (PORT)
    GET /health          200, and how often it has polled
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

POLL_SECONDS = 0.1
PORT = int(os.environ.get("PORT", "8000"))


def control_directory() -> Path | None:
    """Where the worker says that it is ready, if it was told of such a place."""
    for name in ("SNAPSHOT_CONTROL_DIR", "DYN_SNAPSHOT_CONTROL_DIR"):
        if os.environ.get(name):
            return Path(os.environ[name])
    return None


async def checkpointed(folder: Path) -> int:
    """Say that it is ready, and poll; ends the program if its snapshot is all that was wanted."""
    (folder / "ready-for-snapshot").write_text("ready\n")
    polls = 0
    while True:
        if (folder / "snapshot-complete").exists():
            sys.exit(0)
        if (folder / "restore-complete").exists():
            return polls
        await asyncio.sleep(POLL_SECONDS)
        polls += 1


async def serve(polls: int) -> None:
    """Answer every request with 200."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps({"polls": polls}).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "0.0.0.0", PORT)  # noqa: S104 - the pod's address
    print("registered", flush=True)
    async with server:
        await server.serve_forever()


async def main() -> None:
    """Warm up, wait, serve."""
    print("warm", flush=True)
    folder = control_directory()
    await serve(await checkpointed(folder) if folder else 0)


if __name__ == "__main__":
    asyncio.run(main())
