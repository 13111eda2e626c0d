"""Text and image generation: samplers and the loops that run them on the device."""
