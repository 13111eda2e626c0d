"""Sampling: text and image ids, each as a typed state that a loop on the device moves on."""
