"""Ahead-of-time compilation for hardware that is not attached, to estimate memory, traffic and step time."""
