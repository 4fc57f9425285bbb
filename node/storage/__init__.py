"""What is on disk: the write-ahead log, LevelDB, the small files of the data directory, and recovery."""
