"""Measured configs, ``TARGET/SPEC.jsonl``: data that schedules read and never code."""
