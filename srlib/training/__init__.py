"""Settings, losses, the loop, and the runs of a recipe."""
