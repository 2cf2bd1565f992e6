"""Thaw: a containerd shim that restores pods from snapshots instead of booting them cold.

Three kinds of process run this package on a node.

The daemon, one per pod, small: `__main__` and `bootstrap` start it (the launcher in native/ execs
them), `daemon` puts it together around one `loop`. `task` answers containerd: `service` takes the
requests, `creation` turns a Create into a `container`, whose `state` allows or refuses each verb.
`ttrpc` and `proto` are the wire; `runc`, `mount`, `cgroup` and `oom` the world; `lean` is what it
uses of the standard library. `deletion` and `info` are the other things containerd runs us for.

The engine, one per restore or checkpoint, of any size: `engine` is its door, `work` what it was
asked, `restore` and `checkpoint` do it, `trial` is the one within the other, `snapshot` knows what
a snapshot is, `criu` steers CRIU, `gpu` the CUDA driver (but for what the daemon reads in a spec,
and changes in it).
`worker` is what Thaw and a worker say to each other.

The registrar, one per container that is registered somewhere, for as long as it lives:
`registration`.

A Create without a snapshot mounts the root file system and runs `runc create`. With one it opens
the streams and answers pid 0; Start then has an engine run a plan (`restore.plan`) of steps that
can be undone (`restore.steps`), and boots cold if that fails (`task.restoration`).
"""

__version__ = "0.1.0"
