"""The `--config` flag: a recipe by name or path, and `--config.FIELD=VALUE` to change its fields."""

import difflib
import re
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from janus_jax.errors import JanusError
from janus_jax.training.recipe_files import load_recipe

flags.disclaim_key_flags()  # --help lists the flag among those of the command.


def define_recipe_flag() -> "flags.FlagHolder[ConfigDict]":
    """Defines the required flag `--config`. Its value is the config of the recipe, with the command line's changes."""
    holder = config_flags.DEFINE_config_file("config", None, "name of a recipe, such as janus_pro_1b, or a file's path")
    flags.FLAGS["config"].parser = _RecipeParser()
    flags.mark_flag_as_required("config")
    return holder


class _RecipeParser(flags.ArgumentParser[ConfigDict]):
    """Loads a recipe and checks the names of the fields that the command line changes."""

    syntactic_help = ""

    def parse(self, argument: str) -> ConfigDict:
        config = load_recipe(argument)
        for text in sys.argv[1:]:
            if override := re.match(r"--?(?:no)?config\.([^=]+)", text):
                _check_field(config, override[1])
        return config.lock()

    def flag_type(self) -> str:
        return "recipe"


def _check_field(config: ConfigDict, path: str) -> None:
    node, parent = config, "config"
    for part in path.split("."):
        key = part.partition("[")[0]
        if not isinstance(node, ConfigDict):
            raise JanusError(f"{parent} has no fields, so --config.{path} cannot be set.")
        if key not in node:
            fields = sorted(node)
            # Initials, such as "lr" for learning_rate, or a similar spelling.
            similar = [name for name in fields if "".join(word[:1] for word in name.split("_")) == key]
            similar += difflib.get_close_matches(key, fields, n=1)
            hint = f" Did you mean {similar[0]}?" if similar else ""
            raise JanusError(f"{parent}.{key} does not exist.{hint} Fields: {', '.join(fields)}.")
        # None for a placeholder, a field without a value.
        node, parent = node[key], f"{parent}.{key}"
