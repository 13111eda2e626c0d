"""Commands. `run` of each module is the entry point of its console script."""
