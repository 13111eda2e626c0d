"""Image understanding benchmarks: questions about images, answered in text."""
