"""The subcommands of `kvnode`, one module each."""
