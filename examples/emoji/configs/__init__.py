"""Recipes of the emoji example."""
