"""Linux capabilities by name and by number, as sets of bits."""

from __future__ import annotations

from collections.abc import Iterable

# In the order of linux/capability.h, from 0 on.
_ALL = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO "
    "SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME "
    "SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG "
    "WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
NAMES = tuple(f"CAP_{name}" for name in _ALL.split())
_BITS = {name: 1 << number for number, name in enumerate(NAMES)}


def bits(names: Iterable[str]) -> int:
    """The set of some names; one that this version does not know is left out."""
    found = 0
    for name in names:
        found |= _BITS.get(name, 0)
    return found


def words(numbers: Iterable[int]) -> int:
    """The set in words of 32 bits, the low one first, as the kernel and CRIU have it."""
    return sum(word << 32 * place for place, word in enumerate(numbers))


def names(found: int) -> list[str]:
    """The names of a set."""
    numbers = (number for number in range(found.bit_length()) if found >> number & 1)
    return [NAMES[number] if number < len(NAMES) else f"CAP_{number}" for number in numbers]
