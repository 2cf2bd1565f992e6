#!/bin/bash
# Shows Thaw on this machine, as root, on a fresh Debian 12: bash runtimeclass/demo.sh
#
# Installs what is missing, starts a private containerd 2.x (own root, state and socket), boots a real model
# server cold in a pod through CRI, snapshots it, deletes the pod, restores it in a new pod, asks both the
# same question and prints a table. Afterwards nothing of it runs; what was fetched stays in the cache
# (THAW_CACHE, /var/cache/thaw by default), which can be deleted. tests/run.sh explains further variables.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here python=/usr/bin/python3

"$here/fetch.sh" packages ca-certificates cmake gcc iproute2 libc6-dev libseccomp2 \
    ninja-build python3-dev python3-venv

export PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1
environment=$("$python" -c '
from bed.environment import environment
print(environment("bed-env", ["grpcio>=1.60", "protobuf>=7.35"]))')

exec "$environment/bin/python" -m bed.demo
