"""Benchmarks of image understanding and generation, one file each, and the runner."""
