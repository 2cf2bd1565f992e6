"""Making a worker known to those who shall send it work, and taking it out again.

One process per registered container does it, for as long as the container lives (serving); what it
talks to is a Backend: an HTTP callback, etcd, or a command in the container. Everything on the
network happens in the pod's own (place), so that a pod reaches through us what it can reach itself.
"""
