"""From people's files to batches: sources, prepared records, tasks, mixtures and packing. Nothing here imports jax."""
