"""The few things of the standard library that a pod's shim needs, without what they bring along.

`socket`, `threading`, `json` and `signal` import enum, re, functools, collections and selectors:
on the development machine 21 ms and 3 MiB in every pod, more than the rest of the shim together
(`python3 -IS -c 'import socket, threading, json, signal'` 30 ms, without the imports 9). Each
module here wraps the C module that the standard one wraps, with the same names and semantics.
The engine, the command line and the tests use the standard library itself.
"""
