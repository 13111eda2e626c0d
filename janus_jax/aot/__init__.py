"""Ahead-of-time compilation for hardware that is not attached: memory, traffic and a roofline estimate."""
