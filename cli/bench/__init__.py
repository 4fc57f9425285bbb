"""Measuring a node: `kvnode bench`."""
