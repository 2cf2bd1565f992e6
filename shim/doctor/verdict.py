"""What a check says: it is so, it is not and here is what to do, or there is no such thing here."""

from __future__ import annotations

from dataclasses import dataclass

OK, BAD, ABSENT = "ok", "bad", "absent"


@dataclass(frozen=True)
class Verdict:
    """The answer of one check. `fix` is what to do; never empty unless the state is OK."""

    state: str
    said: str
    fix: str = ""
    subject: str = ""  # what of several things it is about; a path


def ok(said: str, subject: str = "") -> Verdict:
    """It is as it should be; `said` has what was found."""
    return Verdict(OK, said, subject=subject)


def bad(said: str, fix: str, subject: str = "") -> Verdict:
    """It is not as it should be: why, and what to do."""
    return Verdict(BAD, said, fix, subject)


def absent(said: str, fix: str) -> Verdict:
    """There is no such thing here, which is no fault."""
    return Verdict(ABSENT, said, fix)
