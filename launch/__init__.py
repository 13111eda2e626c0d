"""Runs the commands from a checkout (`python -m launch.NAME`); the subfolders start runs on clusters."""
