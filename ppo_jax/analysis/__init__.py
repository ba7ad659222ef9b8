"""Statistics of many runs, and their figures."""
