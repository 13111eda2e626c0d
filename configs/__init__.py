"""Recipes: one file per run, headed by its command and the expected result."""
