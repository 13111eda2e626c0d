"""Benchmarks of time and memory, next to PyTorch where it has the same model."""
