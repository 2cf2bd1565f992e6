"""Workers to begin with.

A package, because nvidia-ml-py installs a module `example`, which would be found first.
"""
