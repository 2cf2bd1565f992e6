"""What a check can say."""

from __future__ import annotations

from shim.doctor.verdict import absent, bad, ok


def test_the_three_answers() -> None:
    assert (ok("yes").state, ok("yes").fix) == ("ok", "")
    assert (bad("no", "do it", "/x").state, bad("no", "do it", "/x").subject) == ("bad", "/x")
    assert (absent("none", "get one").state, absent("none", "get one").fix) == ("absent", "get one")
