"""What a snapshot is, where it lies and what it fits.

    STORE/snapshots/ID/
      config.json              what it was made from and with (config.py)
      criu/                    CRIU's images, as `criu dump` left them, without files of pages, and
                               the GPU memory library that its processes map (gpu/preload.py)
      pages/pages-1.img.0000   those, in pieces (pieces.py); some in STRIPE/snapshots/ID/pages/
      pages/gpu-1.img.0000     GPU memory that the driver does not have, beside them
      index/                   what of the memory is filled past CRIU (index.py), and of GPUs past
                               the driver (gpu/memory/index.py)
      rootfs.tar.0000          the overlay's upper directory (archive.py)
      volumes/0.tar.0000       contents of a tmpfs volume that the worker uses (/dev/shm)
      log/                     CRIU's log of the dump
      shared, used             marks: for pods of all namespaces; when it was last restored
      blobs/sha256/HEX, oci-layout, index.json    the same as an OCI artifact (artifact.py)

What is at such a place is complete, and never changes but for the marks and for being made an
artifact. Names lead to it (store.py).
"""
