"""What the operator allows pods to do with snapshots: pure decisions over names.

A snapshot is somebody's memory. Whoever may create pods in one Kubernetes namespace must not come
to read that of another one's by naming it, nor make a node fetch and run whatever a registry has.
"""

from __future__ import annotations

from shim.config import Config
from shim.errors import Denied
from shim.reference import AUTO, Reference

ITS_OWN = ("annotation", AUTO)  # who has made a snapshot: its pod's annotations


def check_namespace(config: Config, made_in: str, live: str, shared: bool, by: str = "") -> None:
    """Raise Denied unless a pod of namespace `live` may restore a snapshot made in `made_in`.

    Both are empty without Kubernetes: a container of `ctr` is no pod's, and no namespace is its
    own. `shared` is the snapshot's mark in this store. `made_in` is what the snapshot says, and so
    is `by`, who has made it: true of those made on this node, and as good as their registry of
    those that were pulled. What a pod has had made of itself is its namespace's alone, unless an
    operator has looked at it: any pod could have taken the name for a worker of its own making.
    """
    if shared or made_in == live:
        return
    said = f"the snapshot was made in {_named(made_in)}, the pod is in {_named(live)}"
    tag = "`thaw tag --shared` marks a snapshot for all namespaces"
    if by in ITS_OWN:
        raise Denied(f"{said}, and nobody but a pod has asked for it", hint=tag)
    if config.text("policy.namespaces") != "any":
        raise Denied(said, hint=f'{tag}, policy.namespaces = "any" allows all of them')


def allowed_to_pull(config: Config, reference: Reference) -> None:
    """Raise Denied unless pods may have `reference` pulled."""
    allowed = config.several("registry.allow", " ")
    if reference.within(allowed):
        return
    shown = f"only what is below {' '.join(allowed)}" if allowed else "nothing"
    raise Denied(
        f"{reference.text[:200]} may not be pulled for pods: {shown:.200} may",
        hint="an operator can `thaw pull` it, or add its prefix to registry.allow",
    )


def _named(namespace: str) -> str:
    return f"namespace {namespace}" if namespace else "no namespace"
