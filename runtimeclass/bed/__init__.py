"""A private containerd, spoken to as the kubelet would: for the demo and for the tests.

    lane.py         one containerd with everything it owns: start, stop, restart, take down
    config.py       its configuration file, per containerd version
    network.py      its bridge and CNI configuration
    images.py       images made on this machine, as OCI archives
    pod.py          pods and containers, as objects
    cri/            the CRI's gRPC messages that we use, and the client
    leaks.py        what a lane owns at this moment, to be compared with a later one
    dismantle.py    removes what a lane left behind, also one whose owner was killed
    model.py        the example model server in a pod
    environment.py  Python environments in the cache
    fetch.py        what comes from Debian (see ../fetch.sh)

Nothing here is installed on a node.
"""
