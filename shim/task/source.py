"""From annotations to where a container comes from, and what happens beside its cold boot.

Looks no further than the names in the stores: whether a snapshot fits is the engine's to say.
"""

from __future__ import annotations

from shim import audit, log, names
from shim.annotations import (
    CHECKPOINT,
    POD_NAME,
    POD_NAMESPACE,
    fail_instead_of_cold_start,
    for_everyone,
    is_annotated,
    probe,
    pull_first,
    wish,
)
from shim.conduct import CONTRACT, Checkpointing, checkpointing
from shim.errors import BadName, CanaryFailed, Denied, NoSuchSnapshot, ThawError, WorkerFailed
from shim.reference import AUTO, Reference, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from shim.annotations import Wish
    from shim.config import Config


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

    What follows a cold boot: `making` is the snapshot that is made of it, `pull` the artifact that
    is pulled for the next one. `waits`: its worker may be one that waits for its snapshot, and must
    be told to go on if there will be none.
    """

    __slots__ = ("making", "pull", "source", "waits")

    def __init__(
        self,
        source: Source | None = None,
        *,
        making: Checkpointing | None = None,
        pull: str = "",
        waits: bool = False,
    ) -> None:
        self.source = source
        self.making = making
        self.pull = pull
        self.waits = waits


def origins_of(
    container: str, checkpoint: str, notes: Mapping[str, str], config: Config
) -> Origins:
    """What a Create request asks for. Raises only if it must not boot cold."""
    if checkpoint:
        return Origins(Source(checkpoint, "", outright=True, must=True))
    if not is_annotated(notes):
        return Origins()
    wanted = wish(notes)
    must, waits, found = False, False, Origins()
    making: Checkpointing | None = None
    try:
        must = fail_instead_of_cold_start(notes)
        ready = probe(notes) or CONTRACT
        making = checkpointing(notes)
        # Without either annotation it may be meant for `thaw checkpoint`: then it waits for that.
        waits = ready.kind == CONTRACT.kind and (wanted is not None or making is not None)
        if wanted is not None:
            found = _look_up(wanted, must, notes, config)
    except ThawError as error:
        refused(config, container, wanted.name if wanted else "", notes, error, cold=not must)
        if must:
            raise
    for key in for_everyone(notes):
        log.warning(
            "an annotation is for all containers of the pod, and one may be meant",
            container=container,
            key=key,
            hint=f"{key}.CONTAINER is for one alone",
        )
    if making is not None:
        found.making = _allowed(making, container, notes, config)
    found.waits = waits
    return found


def _parsed(wanted: Wish) -> Reference:
    try:
        return parse(wanted.name)
    except BadName as error:
        raise BadName(f"{wanted.key}: {error.message}", hint=error.hint) from None


def _look_up(wanted: Wish, must: bool, notes: Mapping[str, str], config: Config) -> Origins:
    reference = _parsed(wanted)
    source = Source("", reference.text, outright=wanted.outright, must=must)
    if reference.auto:
        _allow(notes, config, auto=True)
        return Origins(source, making=checkpointing({**notes, CHECKPOINT: AUTO}))
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


def _allowed(
    making: Checkpointing, container: str, notes: Mapping[str, str], config: Config
) -> Checkpointing | None:
    """The snapshot that may be made; a pod whose may not is restored, or boots, all the same."""
    try:
        _allow(notes, config, auto=making.auto)
    except Denied as error:
        log.warning(
            "no snapshot will be made", container=container, snapshot=making.name, error=error
        )
        note("refuse", config, container, making.name, notes, error, "not made")
        return None
    return making


def _allow(notes: Mapping[str, str], config: Config, *, auto: bool) -> None:
    """Raise Denied unless the pod may have a snapshot made: under a derived name, or its own."""
    key = "policy.auto" if auto else "policy.checkpoint"
    allowed, namespace = config.several(key, " "), notes.get(POD_NAMESPACE, "")
    if "*" not in allowed and namespace not in allowed:
        names_of = "derived names" if auto else "names of their choice"
        raise Denied(
            f"pods of namespace {namespace!r} may not have snapshots made under {names_of}",
            hint=f"see {key} in the configuration",
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
    return Origins(pull=reference.text)


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
        # What a worker has answered is no matter of the audit's; the shim's log has it.
        error=error.hint if isinstance(error, (CanaryFailed, WorkerFailed)) else error.message,
    )
