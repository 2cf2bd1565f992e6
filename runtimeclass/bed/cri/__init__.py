"""The Container Runtime Interface, as far as the bed speaks it: messages (api.proto) and a client."""
