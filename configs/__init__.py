"""Recipes: one file a run, headed by the command that starts it and what it should give."""
