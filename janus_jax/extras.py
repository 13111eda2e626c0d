"""Optional packages. Extras of janus_jax install them, and commands check for them before any work."""

import importlib.util

from janus_jax.errors import JanusError

EXTRAS = {
    "apache_beam": "beam",
    "fastapi": "serve",
    "fsspec": "gcs",
    "gcsfs": "gcs",
    "gradio": "serve",
    "prometheus_client": "serve",
    "pyarrow": "parquet",
    "pydantic": "serve",
    "python_multipart": "serve",
    "starlette": "serve",
    "transformers": "parity",
    "uvicorn": "serve",
    "huggingface_hub": "hub",
    "jinja2": "demo",
    "matplotlib": "demo",
    "wandb": "wandb",
}
"""The extra that installs a package, by the package's import name."""


def require(feature: str, *packages: str) -> None:
    """Checks that optional packages are installed, without importing them.

    Args:
      feature: Flag, file or command that needs the packages, for the message.
      *packages: Import names.

    Raises:
      JanusError: A package is not installed.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise JanusError(f"{feature} needs the package {package}; pip install 'janus_jax[{EXTRAS[package]}]'.")
