"""Image metrics: FID, CLIP score, and the networks that they use."""
