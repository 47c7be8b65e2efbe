"""Studies of the schedules: what the interpreter counts, beside what papers prove."""
