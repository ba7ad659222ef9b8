"""Half an hour of kills, damage and full disks: what a run survives, and what it refuses by name."""
