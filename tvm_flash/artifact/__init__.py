"""A built library on disk: its folder, its manifest, and the proof that it is what was built."""
