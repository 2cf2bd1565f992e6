"""Which extended attributes of an archive's members are set, and which of them make it unfit.

Whoever wrote an archive could write any name there, and we set them as root. So only those are set
that are the worker's own affair: user.*, POSIX ACLs and, where the archive is the difference of a
root file system, capabilities of files and what an overlay's upper directory needs
(https://docs.kernel.org/filesystems/overlayfs.html, fs/overlayfs/overlayfs.h):

    opaque, whiteout        kept: without them names that were removed would come back
    origin, impure, nlink,  left out: they lead to inodes of the old machine's lower directory or
    upper, uuid, protattr   keep numbers of inodes constant; the kernel does without
    redirect, metacopy, …   unfit: what a folder or a file contains is somewhere else, so it would
                            come back as something else without them, and with them the kernel
                            would look where the archive says

Everything else is left out without a word, and that takes nothing from a worker that it could use:
security.selinux and other labels are the new pod's, signatures (security.ima, .evm) are made for
the file system where they are, and trusted.* can be read by the host's root only. A volume is
shared with the pod's other containers: no capability is brought along into what they may run.
"""

from __future__ import annotations

import os

Attributes = tuple[tuple[bytes, bytes], ...]

_CAPABILITY = b"security.capability"
_OVERLAY = b"trusted.overlay."
_OWN = (b"user.", b"system.posix_acl_")
_HIDING = frozenset(_OVERLAY + name for name in (b"opaque", b"whiteout"))
_NEEDLESS = frozenset(
    _OVERLAY + name for name in (b"origin", b"impure", b"nlink", b"upper", b"uuid", b"protattr")
)
# What is put into an archive, as tar's patterns; a "*" stands for any bytes. All else of an overlay
# is looked at, so that a difference that cannot come back is refused when it is made.
PACKED = ("user.*", "system.posix_acl_*", "security.capability", "trusted.overlay.*")
NOT_PACKED = tuple(sorted(name.decode() for name in _NEEDLESS))


def kept(attributes: Attributes, *, overlay: bool) -> Attributes:
    """Those that are set; `overlay`: in an overlay's upper directory."""
    return tuple(pair for pair in attributes if _is_kept(pair[0], overlay))


def unfit(attributes: Attributes, *, overlay: bool) -> str:
    """Why a member with these cannot be laid as it was; empty if it can."""
    for name, _ in attributes:
        if not name.startswith(_OVERLAY) or name in _NEEDLESS:
            continue
        if name not in _HIDING:
            return f"has its content elsewhere ({os.fsdecode(name)!a})"
        if not overlay:
            return f"hides what is below it ({os.fsdecode(name)!a}), and there is no overlay"
    return ""


def _is_kept(name: bytes, overlay: bool) -> bool:
    return name.startswith(_OWN) or (overlay and (name == _CAPABILITY or name in _HIDING))
