"""How a definition runs: schedules, their configs and the targets they serve."""
