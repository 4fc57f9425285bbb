"""The pure core: types, formats and state machines, without any input or output."""
