"""Training: recipes, losses, steps, checkpoints and what is told of a run."""
