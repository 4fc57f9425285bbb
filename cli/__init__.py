"""The `kvnode` command."""
