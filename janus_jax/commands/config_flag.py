"""Reading the file that --config names."""

from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from janus_jax.errors import JanusError


def read_config(flag: Any, example: str) -> ConfigDict:
    """The config of a flag's file.

    Args:
      flag: what `config_flags.DEFINE_config_file("config", ...)` gave.
      example: a file that would do.

    Raises:
      JanusError: the file is missing or no config.
    """
    config = flag.value
    if isinstance(config, ConfigDict):
        return config
    file = config_flags.get_config_filename(flags.FLAGS[flag.name])
    try:
        reason = f"it gives a {type(config.steps).__name__}"
    except Exception as error:  # Whatever went wrong in the file is raised by the first look at it.
        reason = " ".join(str(error).split())
    raise JanusError(f"{file} cannot be read as a config ({reason:.200}); give one such as {example}.")
