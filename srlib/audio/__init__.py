"""Sound in and out: files, recordings of any length, and the one front end."""
