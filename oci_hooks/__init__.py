"""OCI hook executables: container state on stdin, exit status out, the reason on stderr.

Any runtime can name them in the `hooks` section of a spec; Thaw's shim calls them after a restore,
of which a runtime runs only some. What they need is imported while they wait for the state, so a
caller in a hurry starts them early and writes the state when it is time:

    thaw-hook-network     the network identity of a pod (network)

The engine uses two modules directly: hold, which keeps a pod's network shut, and its nftables.
"""
