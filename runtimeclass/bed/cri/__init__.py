"""The Container Runtime Interface as far as the bed speaks it: messages and a client."""
