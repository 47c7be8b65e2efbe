"""Studies: bytes that schedules move beside what papers prove, and searches of their spaces."""
