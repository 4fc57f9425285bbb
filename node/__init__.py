"""One process, one node: the log, the store, the REST front, and the service that puts them together."""
