"""From annotations to where a container comes from, and what happens beside its cold boot.

Looks no further than the names in the stores: whether a snapshot fits is the engine's to say.
"""

from __future__ import annotations

from shim import audit, log, names
from shim.annotations import (
    POD_NAME,
    POD_NAMESPACE,
    Probe,
    fail_instead_of_cold_start,
    probe,
    pull_first,
    wish,
)
from shim.errors import BadAnnotation, Denied, NoSuchSnapshot, ThawError
from shim.reference import Reference, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from shim.config import Config

MAKE = "make"
PULL = "pull"


class Source:
    """The snapshot that was asked for.

    `path` is its folder; empty if the engine shall derive its name (`auto`) or pull it first.
    `outright`: the container was named by the annotation's key. `must`: no cold boot instead.
    `name` is the reference; empty for a checkpoint that containerd handed over as a folder.
    """

    __slots__ = ("must", "name", "outright", "path")

    def __init__(self, path: str, name: str, *, outright: bool, must: bool) -> None:
        self.path = path
        self.name = name
        self.outright = outright
        self.must = must


class Origins:
    """Where a container comes from: a snapshot or, without a source, a cold boot.

    `aside` is what follows a cold boot: MAKE its snapshot once `ready` says that it is warm, PULL
    the artifact `name` for the next one, or nothing.
    """

    __slots__ = ("aside", "name", "ready", "source")

    def __init__(
        self,
        source: Source | None = None,
        *,
        aside: str = "",
        name: str = "",
        ready: Probe | None = None,
    ) -> None:
        self.source = source
        self.aside = aside
        self.name = name
        self.ready = ready


def origins_of(
    container: str, checkpoint: str, notes: Mapping[str, str], config: Config
) -> Origins:
    """What a Create request asks for. Raises only if it must not boot cold."""
    if checkpoint:
        return Origins(Source(checkpoint, "", outright=True, must=True))
    wanted = wish(notes)
    if wanted is None:
        return Origins()
    must = False
    try:
        must = fail_instead_of_cold_start(notes)
        return _look_up(parse(wanted.name), wanted.outright, must, notes, config)
    except ThawError as error:
        refused(config, container, wanted.name, notes, error, cold=not must)
        if must:
            raise
        return Origins()


def _look_up(
    reference: Reference, outright: bool, must: bool, notes: Mapping[str, str], config: Config
) -> Origins:
    ready = probe(notes)
    source = Source("", reference.text, outright=outright, must=must)
    if reference.auto:
        if ready is None:
            raise BadAnnotation(
                "thaw.dev/snapshot: auto without thaw.dev/ready",
                hint="nothing says when the worker is warm",
            )
        _allow_auto(notes.get(POD_NAMESPACE, ""), config)
        return Origins(source, aside=MAKE, ready=ready)
    path = names.find(config.several("snapshots"), reference)
    if path is not None:
        source.path = path
        return Origins(source)
    if not reference.remote:
        raise NoSuchSnapshot(
            f"no snapshot named {reference.text} in {config.text('snapshots')}",
            hint="`thaw ls` lists them, `thaw checkpoint` makes one",
        )
    return _pulled(reference, source, pull_first(notes), config)


def _allow_auto(namespace: str, config: Config) -> None:
    allowed = config.several("policy.auto", " ")
    if "*" not in allowed and namespace not in allowed:
        raise Denied(
            f"pods of namespace {namespace!r} may not have snapshots made by auto",
            hint="see policy.auto in the configuration",
        )


def _pulled(reference: Reference, source: Source, when: str, config: Config) -> Origins:
    missing = NoSuchSnapshot(
        f"the node has no {reference.text}", hint="`thaw pull` fetches it; see thaw.dev/pull"
    )
    if when == "never":
        raise missing
    if not reference.within(config.several("registry.allow", " ")):
        raise Denied(
            f"{reference.text} is not among what pods may have pulled",
            hint="see registry.allow in the configuration",
        )
    if when == "wait":
        return Origins(source)
    if source.must:
        raise missing
    log.info("booting cold while it is pulled", snapshot=reference.text)
    return Origins(aside=PULL, name=reference.text)


def refused(
    config: Config,
    container: str,
    name: str,
    notes: Mapping[str, str],
    error: ThawError,
    *,
    cold: bool,
) -> None:
    """Say in the log and in the audit log why a container does not come from a snapshot."""
    log.warning(
        "booting cold" if cold else "not restored",
        container=container,
        snapshot=name[:80],
        reason=error.reason,
        hint=error.hint,
        error=error.message,
    )
    outcome = "cold boot" if cold else "failed"
    note("refuse", config, container, name[:80], notes, error, outcome)


def note(
    event: str,
    config: Config,
    container: str,
    name: str,
    notes: Mapping[str, str],
    error: ThawError,
    outcome: str,
    id: str = "",
) -> None:
    """Write a line of the audit log about a container that was not restored."""
    pod, namespace = notes.get(POD_NAME, ""), notes.get(POD_NAMESPACE, "")
    audit.record(
        config,
        event,
        who=f"pod {namespace}/{pod}" if pod else "containerd",
        name=name,
        id=id,
        container=container,
        pod=pod,
        namespace=namespace,
        outcome=outcome,
        reason=error.reason,
        error=error.message,
    )
