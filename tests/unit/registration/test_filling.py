"""What stands in braces becomes what the identity says."""

from __future__ import annotations

from urllib.parse import quote

from shim.conduct import PLACES
from shim.registration.filling import filled
from shim.worker import identity

NOTES = {"io.kubernetes.cri.sandbox-name": "pod/1", "io.kubernetes.cri.sandbox-namespace": "team"}


def test_words() -> None:
    made = identity.make(NOTES, container="c", hostname="h", ips=["10.0.0.1", "fd00::1"])
    assert filled("w/{namespace}/{pod}/{ip}", made) == "w/team/pod/1/10.0.0.1"
    assert filled("{pod}", made, lambda text: quote(text, safe="")) == "pod%2F1"
    assert filled("{ip}", {**made, "ips": []}) == ""
    every = filled("|".join(f"{{{word}}}" for word in PLACES), identity.public(made))
    assert "{" not in every
    assert made["generation"] in every
