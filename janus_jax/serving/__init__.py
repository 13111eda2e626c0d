"""HTTP server with OpenAI's API, and a web page, over the engine (`janus_jax.generation.engine`)."""
