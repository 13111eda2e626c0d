"""Benchmarks of image understanding and image generation, one file each, and the runner that answers them."""
