"""containerd's door: `start`, `delete`, `-v`, `-info`; nothing else.

Run as a script by the launcher with `python3 -IS`: neither site nor environment is looked at, so
the first lines say where Thaw's packages are. Every import here is paid by every container.
"""

import sys

if __name__ == "__main__":
    _here = __file__.rpartition("/")[0]
    sys.path.insert(0, _here.rpartition("/")[0])

from shim import bootstrap

if __name__ == "__main__":
    sys.exit(bootstrap.main(sys.argv[1:]))
