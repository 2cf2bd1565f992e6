"""Whether the node's cache of GPU memory is held by somebody, if there shall be one."""

from __future__ import annotations

from collections.abc import Iterator

from shim.cache import client
from shim.doctor.node import Node
from shim.doctor.verdict import Verdict, absent, bad, ok
from shim.errors import Unavailable

GIB = 1 << 30


def cache(node: Node) -> Iterator[Verdict]:
    """The node's cache is held, and its memory is pinned."""
    if node.config.number("cache.size") <= 0:
        yield absent("cache.size is 0", "with more, further replicas get GPU memory from there")
        return
    try:
        found = client.answer(node.config, {"verb": "list"})
    except Unavailable as error:
        yield bad(error.message, "systemctl start thaw-cache; until then files are read")
        return
    used, held, pinned, limit = (
        int(found.get(word, 0)) / GIB for word in ("used", "held", "pinned", "limit")
    )
    if pinned < held:
        said = f"{held - pinned:.1f} of {held:.1f} GiB are not pinned: copies from there are slow"
        yield bad(said, "journalctl -u thaw-cache says why")
    else:
        yield ok(f"{used:.1f} of {limit:.1f} GiB are used")
