"""The node's cache: the GPU memory of snapshots, in pinned memory, for the next replica.

segments.py   files of huge pages, mapped
store.py      what lies where in them: chunks, by their digests, and which snapshot has which
records.py    what the store writes down of a snapshot, so that it is found again
intake.py     reading a snapshot in
pinned.py     the segments' pages, pinned, and copies from there to GPUs
holder.py     the process that has all of it, one a node; it outlives pods
wire.py       what is said between it and others
client.py     what engines and the command line ask of it
"""
