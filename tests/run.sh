#!/bin/bash
# Installs what is missing and runs all tests, as root: bash tests/run.sh [pytest's arguments].
#
#   bash tests/run.sh                          everything
#   bash tests/run.sh tests/unit               what needs no containerd
#   bash tests/run.sh tests/e2e -k restore
#
# THAW_TEST_LANES=1.6,2.x      the containerd versions of tests/e2e (there is 1.7 too)
# THAW_TEST_INSTALLATION=DIR   the folder of installed commands to test, instead of this checkout installed;
#                              `none`: only the tests that need no handler `thaw`
# THAW_CACHE=DIR               where fetched and built things are kept (/var/cache/thaw)
# THAW_DEBIAN_MIRROR=URI       where Debian's packages are, if this machine is not Debian
# THAW_TORCH_INDEX=URI         an extra package index with PyTorch's CPU build
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly checkout venv=$checkout/.venv
cd "$checkout"

# Never a version manager's wrapper: the shim is measured with the interpreter that a node has.
readonly python=/usr/bin/python3

runtimeclass/fetch.sh packages ca-certificates cmake gcc iproute2 libc6-dev libseccomp2 \
    musl-tools ninja-build python3-dev python3-venv

# An editable install sees every change of the Python sources; a change of these needs a new one.
wanted=$({ "$python" --version; find pyproject.toml native -type f -print0 | sort -z | xargs -0 sha256sum; } |
    sha256sum | cut -d ' ' -f 1)
if [[ $(cat "$venv/made-from" 2>/dev/null) != "$wanted" ]]; then
    [[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
    # tomlkit: the installer's own need, not the product's (runtimeclass/containerd_config.py).
    "$venv/bin/python" -m pip install -qq --editable '.[test]' tomlkit >&2
    echo "$wanted" >"$venv/made-from"
fi

exec "$venv/bin/python" -m pytest "$@"
