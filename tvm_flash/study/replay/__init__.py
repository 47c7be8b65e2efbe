"""Replay tables: every point of a space measured once, read, written and made."""
