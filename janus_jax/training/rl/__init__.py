"""Policy optimization of image generation: rollouts, rewards and the objective."""
