"""Search algorithms: one plain function per file, found by its registered name."""
