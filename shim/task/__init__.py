"""The Task service of one pod: requests, containers, processes, streams, events."""
