"""Restoration of files of any length: analysis, generation, merge."""
