"""What a node keeps on its own disk: the write-ahead log, LevelDB, and their recovery."""
