"""Measured configs, one ``*.jsonl`` file per target: data that schedules read and never code."""
