"""Sources, prepared records, mixtures, packing and batches. Data workers import this package without jax."""
