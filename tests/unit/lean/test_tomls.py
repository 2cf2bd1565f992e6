"""tomllib is the oracle: the same value for the same document, an error where it has one."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.lean import tomls

CHECKOUT = Path(__file__).resolve().parents[3]

USUAL = """
# what an operator writes
state = "/run/thaw"   # a comment
SystemdCgroup = true
IoUid = 0
audit.log = "/var/log/thaw/audit.log"
policy.auto = "*"
policy.namespaces = "own"

[restore]
deadline = 60.0
[log]
level = "info"
"""

FRAGMENTS = st.sampled_from(
    [
        *(
            "a",
            "b = 1",
            'a = "x"',
            "a.b = 2",
            "a.c = 3",
            "a.b.d = 4",
            "t.a = 5",
            "a . b = 6",
            ".a=7",
            "[t]",
            "[t.u]",
            "[[x]]",
            "# c",
            "\n",
            " ",
            "=",
            '"',
        ),
        *(
            "\\",
            "'x'",
            "1.5",
            "0.",
            ".5",
            "01",
            "true",
            "tru",
            "1_0",
            "+1",
            "-1",
            '""',
            '"""',
            "\t",
        ),
        *("\r\n", "\r", "\x01", "\x7f", "é", "[", "],", "]", "k = true # x", '"a" = 1', "inf"),
        *("nan", "1e5", "0x1", 'k="a#b"', "\x85", "\u2028"),
    ]
)
DOCUMENTS = st.lists(FRAGMENTS, max_size=8).map("".join) | st.lists(FRAGMENTS, max_size=8).map(
    "\n".join
)


@given(DOCUMENTS | st.text(max_size=40))
@settings(max_examples=1500, deadline=None)
def test_as_tomllib(text: str) -> None:
    try:
        wanted: object = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        with pytest.raises(ValueError):  # noqa: PT011 - tomllib's own error is one
            tomls.loads(text)
        return
    assert repr(tomls.loads(text)) == repr(wanted)  # repr: nan is not itself


def test_the_usual_needs_no_tomllib() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from shim.lean import tomls; "
        "print(tomls.loads(sys.argv[2])['restore'], 'tomllib' in sys.modules, 're' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", program, str(CHECKOUT), USUAL],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "{'deadline': 60.0} False False"
