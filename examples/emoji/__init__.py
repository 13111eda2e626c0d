"""Trains a small Janus on the pictures and names of emoji; see README.md."""
