"""What a snapshot is, where it lies and what it fits.

    NAME/config.json   what it was made from and with (config.py)
    NAME/criu/         CRIU's images, as `criu dump` left them
    NAME/index/        what of the memory is filled past CRIU (index.py)
    NAME/rootfs/       the overlay's upper directory, whiteouts and extended attributes kept
    NAME/volumes/N/    contents of the tmpfs volumes that the worker uses (/dev/shm)
    NAME/log/          CRIU's log of the dump

A folder whose name is a snapshot's name is complete: drafts have names that no snapshot can have
and become snapshots by one rename (store.py).
"""
