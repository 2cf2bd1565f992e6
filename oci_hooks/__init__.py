"""OCI hook executables, callable by any OCI runtime: container state on stdin, exit status out.

They come with network identity (addresses, host names, registration); there are none yet.
"""
