"""Sources, prepared records, mixtures, packing and batches. Sources and preparation do not import jax."""
