"""Replication: the asyncio shells that execute what the protocol's state machines ask for."""
