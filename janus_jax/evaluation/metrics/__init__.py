"""Image metrics (FID and CLIP score) and the networks that compute them."""
