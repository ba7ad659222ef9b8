"""What touches a folder, a signal or a terminal while something is trained."""
