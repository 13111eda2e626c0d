"""Image generation benchmarks: prompts, the images generated from them, and their scores."""
