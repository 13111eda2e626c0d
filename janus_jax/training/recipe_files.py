"""Recipe files: finding one by name or path, and loading its config."""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from janus_jax.errors import JanusError, did_you_mean, similar_names

_PACKAGE = Path(__file__).parents[1]
# An installed package contains the recipes in `recipes/`, a checkout in `configs/`.
RECIPES = _PACKAGE / "recipes" if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent / "configs"


def recipe_names() -> list[str]:
    """Lists the names of the recipes that come with the package, such as `janus_pro_1b`."""
    return sorted(path.stem for path in RECIPES.glob("*.py") if path.stem != "__init__")


def find_recipe(name: str) -> Path:
    """Returns the file of a recipe.

    Args:
      name: A recipe's name, or the path of a Python file. Text without a slash and without `.py` at the end is always a
        name, even if the working directory has a file with that name.

    Raises:
      JanusError: There is no such recipe or file.
    """
    names = recipe_names()
    if "/" in name or name.endswith(".py"):
        if Path(name).is_file():
            return Path(name)
        hint = did_you_mean([f"the recipe {Path(name).stem}"] if Path(name).stem in names else [])
        raise JanusError(f"{name} is not a file.{hint} Give the path of a recipe file, or a name: {', '.join(names)}.")
    if name in names:
        return RECIPES / f"{name}.py"
    hint = did_you_mean(similar_names(name, names))
    raise JanusError(f"There is no recipe {name!r}.{hint} Recipes: {', '.join(names)}; or give the path of a file.")


def load_recipe(name: str) -> ConfigDict:
    """Returns the config of a recipe.

    Args:
      name: Name or path, see `find_recipe`. `NAME:ARGUMENT` passes the argument to the file's `get_config`.

    Raises:
      JanusError: There is no such recipe, or its file does not return a config.
    """
    name, *arguments = name.split(":", 1)
    file = find_recipe(name)
    spec = importlib.util.spec_from_file_location(f"janus_recipe_{file.stem}", file)
    try:
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config(*arguments)
    # A recipe is the user's code, which can raise any exception.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise JanusError(f"{file} cannot be loaded as a recipe ({reason:.200}).") from error
    if not isinstance(config, ConfigDict):
        raise JanusError(f"{file}: get_config() returns a {type(config).__name__}; it must return a ConfigDict.")
    return config
