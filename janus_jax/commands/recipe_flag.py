"""The `--config` flag: a recipe by name or path, and `--config.FIELD=VALUE` to change its fields."""

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from janus_jax.commands import cli
from janus_jax.errors import JanusError
from janus_jax.training.config_dicts import best_match, no_such_field
from janus_jax.training.recipe_files import load_recipe

flags.disclaim_key_flags()  # --help lists the flag among those of the command.


def define_recipe_flag() -> "flags.FlagHolder[ConfigDict]":
    """Defines the required flag `--config`.

    Its value is the config of the recipe with the changes from the command line.

    Also defines `--print_config`, which prints this config and exits.
    """
    holder = config_flags.DEFINE_config_file("config", None, "name of a recipe, such as janus_pro_1b, or a file's path")
    flags.FLAGS["config"].parser = _RecipeParser()
    flags.mark_flag_as_required("config")
    text = "print all fields of --config with their values and documentation, and exit"
    cli.define_action("print_config", text, _print_config, needs="config")
    return holder


def overridden_fields() -> list[str]:
    """Returns the paths of the fields that the command line changes, such as "config.stage"."""
    arguments = flags.FLAGS.read_flags_from_files(sys.argv[1:], force_gnu=False)
    matches = (re.match(r"--?(?:no)?(config\.[^=]+)", text) for text in arguments)
    return [match[1] for match in matches if match]


class _RecipeParser(flags.ArgumentParser[ConfigDict]):
    """Loads a recipe and checks the names of the fields that the command line changes."""

    syntactic_help = ""

    def parse(self, argument: str) -> ConfigDict:
        config = load_recipe(argument)
        for path in overridden_fields():
            check_field(config, path)
        return config.lock()

    def flag_type(self) -> str:
        return "recipe"


def check_field(config: ConfigDict, path: str) -> None:
    """Checks that a config has a field, such as "config.stages.stage_1.steps".

    Raises:
      JanusError: The field does not exist.
    """
    parent, *parts = path.split(".")
    node = config
    for part in parts:
        key = part.partition("[")[0]
        if node is None:
            raise JanusError(f"{parent} is not set, so --{path} cannot be; set it in a recipe file.")
        if not isinstance(node, ConfigDict):
            raise JanusError(f"{parent} has no fields, so --{path} cannot be set.")
        if key not in node:
            raise JanusError(no_such_field(parent, key, node, dict(_names_by_path(config))))
        # None for a placeholder, a field without a value.
        node, parent = node[key], f"{parent}.{key}"


def _names_by_path(node: ConfigDict, where: str = "config") -> Iterator[tuple[str, str]]:
    """Yields the path and the name of every field."""
    for name in node:
        yield f"{where}.{name}", name
        if isinstance(node[name], ConfigDict):
            yield from _names_by_path(node[name], f"{where}.{name}")


def recipe_class(config: Mapping[str, Any]) -> type[Any]:
    """Returns the recipe dataclass that has the most fields in common with the config."""
    # Imported here, because these modules import jax.
    from janus_jax.training.image_tokenizer.recipe import VAERecipe, VQRecipe
    from janus_jax.training.recipe import Recipe
    from janus_jax.training.siglip import SiglipRecipe

    return best_match((Recipe, VQRecipe, VAERecipe, SiglipRecipe), config)


def _print_config() -> None:
    from janus_jax.training.config_docs import describe_config

    config: Any = flags.FLAGS["config"].value
    print(describe_config(recipe_class(config), config))
