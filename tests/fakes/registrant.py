"""A process that does what an engine is asked about registration: requests and answers, by lines.

registrant.py CHECKOUT
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any, cast

if __name__ == "__main__":
    sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]

from fakes.settled import PATIENCE
from shim.errors import ThawError
from shim.registration import serving
from shim.registration.serving import Registering
from shim.work import Work


def tell(line: object) -> None:
    print(json.dumps(line), flush=True)


def work_of(request: dict[str, Any]) -> Work:
    bundle = SimpleNamespace(spec=lambda: request["spec"])
    return cast(Work, SimpleNamespace(id="c", bundle=bundle, details=request, runc=None))


def main() -> None:
    serving.LAST_SECONDS = PATIENCE  # what it does in the end is looked at
    registering = Registering(tell, lambda _: False)
    for line in sys.stdin:
        request = json.loads(line)
        verbs = {"register": registering.begin, "deregister": registering.end}
        try:
            tell(verbs[request["verb"]](work_of(request)))
        except ThawError as error:
            tell({"error": error.reason, "because": str(error)})
    registering.release()


if __name__ == "__main__":
    main()
