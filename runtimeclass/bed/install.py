"""The product installed from a checkout into the cache: one environment per state of sources."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from bed.environment import environment, fingerprint
from bed.fetch import cache_folder
from bed.lane import Installation

_SOURCES = ("pyproject.toml", "native", "shim", "oci_hooks")
_KEPT_SECONDS = 24 * 3600


def installed(checkout: Path) -> Installation:
    """Install the checkout, unless this very state of it is installed already."""
    sources = fingerprint([checkout / name for name in _SOURCES])
    place = f"installed-{sources[:12]}"
    _forget_old(place)
    return Installation(environment(place, [str(checkout)], sources) / "bin")


def _forget_old(wanted: str) -> None:
    # Not at once: another run, of another state of the sources, may be using it.
    for place in cache_folder().glob("installed-*"):
        if place.name != wanted and time.time() - place.stat().st_mtime > _KEPT_SECONDS:
            shutil.rmtree(place, ignore_errors=True)
