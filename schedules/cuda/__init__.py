"""Schedules for NVIDIA GPUs: warp programs over tensor-core fragments, from the one definition."""
