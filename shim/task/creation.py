"""From a Create request to a Container: options, spec, annotations, and whether to restore."""

from __future__ import annotations

import os

from shim import log
from shim.annotations import POD_NAMESPACE, named_snapshots, wish
from shim.bundle import Bundle, annotations_of, namespace_path, steer_criu
from shim.errors import ThawError
from shim.runc import Runc
from shim.task import options
from shim.task.container import Container, remove_state
from shim.task.contract import agree, has_gpus
from shim.task.restoration import Restoration
from shim.task.rootfs import Rootfs
from shim.task.source import Origins, origins_of
from shim.task.stdio import Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shim.config import Config
    from shim.proto.task_pb import CreateTaskRequest
    from shim.task.host import Host


def create(host: Host, request: CreateTaskRequest) -> Container:
    """Make the container that `request` describes, cold or prepared for a restore in Start.

    On any error nothing is left: no mount, no runc state, no file of ours.
    """
    bundle = Bundle(request.bundle)
    with open(bundle.marker, "w"):
        pass
    config = options.configuration(request.options)
    log.set_level(config.text("log.level"))
    options.keep(bundle, config)
    spec = bundle.spec()
    folder = container_folder(config, host.namespace, request.id)
    _make_folder(folder, host.socket)
    container, notes = None, {}
    wanted = wish(annotations_of(spec))  # whatever will be made of that
    asked = [wanted.name] if wanted is not None else []
    try:
        notes = agree(request.id, spec, folder, config)
        origins = origins_of(request.id, request.checkpoint, notes, config)
        if origins.source is None:  # nobody else would end what may have its GPU's memory by now
            host.engines.cool(asked)
        others = host.engines.others(origins.source.name if origins.source is not None else "")
        if others and has_gpus(spec, notes, config):
            for engine in others:
                engine.give_way()
        steer_criu(spec, _criu_config(folder))
        bundle.save(spec)
        container = _assemble(host, request, bundle, config, spec, folder, origins, notes)
        _read_ahead(host, container, notes)  # a sandbox's engines get ready while runc makes it
        if container.restoration is not None:
            from shim.task.adjusting import adjust

            adjust(container.runc, bundle)
        container.create()
        return container
    except BaseException:
        if container is not None:
            _undo(container, notes)
        else:
            host.engines.cool(asked)
        remove_state(folder)
        raise


def _read_ahead(host: Host, container: Container, notes: dict[str, str]) -> None:
    """Begin to read what the pod's containers will ask for; it only saves time."""
    names, namespace = named_snapshots(notes), notes.get(POD_NAMESPACE, "")
    try:
        host.engines.warm(container.runc.env, names, container.config.as_dict(), namespace)
    except (ThawError, OSError) as error:
        log.warning("not read ahead", container=container.id, error=error)


def container_folder(config: Config, namespace: str, container_id: str) -> str:
    """The container's place under the state folder."""
    return f"{config.text('state')}/{namespace}/{container_id}"


def _criu_config(folder: str) -> str:
    """Make a CRIU configuration of ours, which is rewritten before each use."""
    path = f"{folder}/criu.conf"
    with open(path, "w"):
        pass
    return path


def _make_folder(folder: str, socket: str) -> None:
    os.makedirs(folder, mode=0o700, exist_ok=True)
    link = f"{folder}/shim.sock"  # how `thaw checkpoint` finds the shim of a container
    if os.path.lexists(link):
        os.unlink(link)
    os.symlink(socket, link)


def _assemble(
    host: Host,
    request: CreateTaskRequest,
    bundle: Bundle,
    config: Config,
    spec: dict[str, Any],
    folder: str,
    origins: Origins,
    notes: dict[str, str],
) -> Container:
    runc = Runc(config, host.namespace, request.id, bundle.log, host.reaper.run)
    rootfs = Rootfs(bundle.rootfs, request.rootfs)
    return Container(
        host,
        bundle,
        runc,
        rootfs,
        Streams(request.stdin, request.stdout, request.stderr, request.terminal),
        config=config,
        folder=folder,
        shares_pids=namespace_path(spec, "pid") != "",
        restoration=Restoration(host, origins.source) if origins.source else None,
        origins=origins,
        notes=notes,
    )


def _undo(container: Container, notes: dict[str, str]) -> None:
    if container.restoration is not None:
        container.restoration.close()
    # Each on its own: a runtime that is not there must not keep the root file system mounted.
    steps: tuple[Callable[[], None], ...] = (
        lambda: container.host.engines.cool(named_snapshots(notes)),
        lambda: container.runc.delete(force=True),
        container.rootfs.unmount,
    )
    for step in steps:
        try:
            step()
        except (ThawError, OSError) as error:
            log.warning("cleaning up a failed create", container=container.id, error=error)
    container.init.close_stdio()
