"""Running a job on this machine: run folders, checkpoints, signals and the terminal display."""
