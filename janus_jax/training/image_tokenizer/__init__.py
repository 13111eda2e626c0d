"""Trains image tokenizers: VQ (LlamaGen's VQ-16, arXiv 2406.06525, §2.1; VQGAN, arXiv 2012.09841) and VAE."""
