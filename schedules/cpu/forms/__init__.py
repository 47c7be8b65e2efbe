"""Streaming forms of attention, over tiles and operands, that CPU schedules transform."""
