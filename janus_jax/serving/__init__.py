"""HTTP server with OpenAI's API over the engine (`janus_jax.generation.engine`)."""
