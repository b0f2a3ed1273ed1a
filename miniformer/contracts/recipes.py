"""What recipes of optimizers and schedules promise."""
