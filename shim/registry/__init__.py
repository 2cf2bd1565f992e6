"""Snapshots to and from registries, over the OCI distribution API. Only the engine and the command
line come here: none of it may be imported by a pod's shim.

    pushing.py, pulling.py   the two things that are done
    repository.py            one repository of one registry: manifests, blobs, uploads
    transport.py             requests: TLS, time limits, redirects, authorization, other attempts
    contentstore.py          the same blobs from a containerd that has them already
    remains.py, failures.py  what pulls leave in a store: blobs to go on with, why they failed
    deadlines.py             ends for answers that trickle

The protocol is the OCI distribution specification 1.1. The Python ORAS SDK, which speaks it too,
was looked at (0.2.43) and does not do: it reads a whole blob into memory to send it, writes what
it fetches without looking at the digest, knows neither ranges nor time limits, and cannot go on
with what an interruption has left. So requests are made with urllib3 (pools, TLS by the system's
own certificates, time limits, streams), and the protocol is spoken here.
"""

from __future__ import annotations

from shim.registry.pulling import pull
from shim.registry.pushing import push

__all__ = ["pull", "push"]
