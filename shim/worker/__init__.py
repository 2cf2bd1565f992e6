"""What Thaw and a worker say to each other: the control directory, actions, the canary.

control and identity are the daemon's, too, and import next to nothing; the rest is the engine's.
"""
