"""Strategies compared on replay tables: runs, their curves, documents and plots."""
