"""Thaw: a containerd shim that restores pods, GPU state included, instead of booting them cold."""

__version__ = "0.1.0"
