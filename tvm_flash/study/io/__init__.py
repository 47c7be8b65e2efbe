"""Bytes through device memory: counted by the interpreter, and from theory."""
