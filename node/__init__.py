"""One kvnode process: its storage, its store, and its network faces."""
