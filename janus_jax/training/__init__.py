"""Training: recipes, losses, steps, checkpoints and the trainer."""
