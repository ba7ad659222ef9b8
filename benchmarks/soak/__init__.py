"""Kills, damage and full disks: what a run survives, and what it refuses by name."""
