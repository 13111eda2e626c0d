"""What a model is worth: benchmarks, one file each."""
