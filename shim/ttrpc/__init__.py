"""ttrpc, the small RPC that containerd and its shims speak over a Unix socket.

    frames       the ten-byte header and how a stream of bytes becomes frames
    connection   one socket on the event loop: frames in, frames out
    call         what a handler sees of a call, and answers that come later
    session      one client's calls: dispatch, answers, errors as status codes
    server       the listening socket and its sessions
    client       a blocking client, for the events service, the command line and the tests

Unary calls only: nothing that containerd asks of a shim, or a shim of containerd, is a stream.
The protocol is described in PROTOCOL.md of github.com/containerd/ttrpc.
"""
