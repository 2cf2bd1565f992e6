"""The messages a shim exchanges, and the codec that reads and writes them.

The `.proto` files are our own subsets of containerd's interfaces; `generate.py` makes the `*_pb`
modules from them, and `wire` is all those modules need to run. `known` is the hand-written part:
Any and Timestamp made convenient. Real protobuf would cost each pod 20 ms and 5 MiB, so only the
tests use it, to check this codec against.
"""
