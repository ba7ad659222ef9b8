"""Reading, statistics and figures of many runs, and the style that all figures share."""
