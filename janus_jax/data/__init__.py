"""Sources, prepared records, mixtures, packing and batches. Data workers import it without importing jax."""
