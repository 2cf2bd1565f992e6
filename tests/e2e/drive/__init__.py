"""Drives a shim as containerd does, without containerd: any shim, so that two can be compared.

bundle   a container on disk: root file system, OCI spec, FIFOs
sink     the event service that a shim reports to
shim     `start`, the Task service over ttrpc, `delete`
session  a script of calls, and what came of each, told so that two shims' tales can be compared
"""
