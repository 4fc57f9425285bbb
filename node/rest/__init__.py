"""The REST interface: HTTP in front of the store, and nothing of what is behind it."""
