#!/bin/bash
# Thaw on a real GPU, as root: bash tests/gpu/run.sh [--only PART,…] [--python PYTHON] [--json FILE] …; --help names all
#
# Each worker is booted in a pod of a private containerd, snapshotted, and restored in new pods, with the page cache
# cold and warm; what it answers is compared each time. The same worker is dumped and restored by stock CRIU beside it.
#
#   pytorch        all of its memory, and a CUDA graph
#   transformers   Qwen3's shapes with random weights (--shapes), behind HTTP
#   vllm           a real vLLM with random weights, with and without its sleep (--vllm, --vllm-site)
#   memory         every kind of GPU memory, in PyTorch and JAX (--workers): see everything.py, jax_worker.py
#   overhead       what a program pays for the library in it: see overhead.py
#   sanitizer      NVIDIA's compute-sanitizer (--sanitizer) over a program whose memory comes and goes
#   faults         what can go wrong: see faults.py
#   moved-faults   the same, where GPU memory is moved past the driver: see moved_faults.py
#   moved          with two GPUs: saved on one, restored on the other
#   nccl           with two GPUs: NCCL between two processes, torn down and built up again
#
# Takes a few minutes for each part, and needs no network if everything is there; `python -m gpu.table FILE` prints
# the tables of a document again. `--device cpu` tries all but the GPU itself on a machine that has none.
#
#   PYTHON                       has PyTorch for the GPU (python3 in PATH)
#   NVIDIA's driver              570 or newer; no container tools, no CUDA toolkit
#   THAW_CACHE=DIR               containerd-2.x, runc, criu, cni and busybox, as runtimeclass/fetch.sh unpacks them
#                                (/var/cache/thaw); what is missing is fetched from Debian
#   PIP_NO_INDEX=1 PIP_FIND_LINKS=DIR   a folder of wheels: what pyproject.toml names, with all that these need
#   THAW_TEST_INSTALLATION=DIR   the folder with the commands of an installed Thaw, instead of this checkout's;
#                                also with a `python` that has it
#   THAW_BED_PYTHON=PYTHON       one that has grpcio, protobuf and nvidia-ml-py, instead of an environment that is made for that
#
# Commands that must be there: gcc, cmake and ninja unless THAW_TEST_INSTALLATION is set, and ip.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly checkout python=/usr/bin/python3
cd "$checkout"

needed=(ip)
[[ -n ${THAW_TEST_INSTALLATION:-} ]] || needed+=(gcc cmake ninja)
for command in "${needed[@]}"; do
    type -P "$command" >/dev/null || {
        echo "run.sh: no $command here" >&2
        exit 1
    }
done

export PYTHONPATH=$checkout/runtimeclass:$checkout/tests PYTHONDONTWRITEBYTECODE=1
if [[ -z ${THAW_BED_PYTHON:-} ]]; then
    THAW_BED_PYTHON=$("$python" -c '
from bed.environment import environment
print(environment("gpu-env", ["grpcio>=1.60", "protobuf>=7.35", "nvidia-ml-py>=12.570"]))')/bin/python
fi

exec "$THAW_BED_PYTHON" -m gpu.run "$@"
