"""Entry points: thin commands over `janus_jax`. Nothing imports them."""
