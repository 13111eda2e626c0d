"""Flags that select the best of several generated images."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from janus_jax.commands import cli
from janus_jax.errors import JanusError
from janus_jax.rewards import make_reward

if TYPE_CHECKING:
    from janus_jax import Pretrained
    from janus_jax.generation.best_of import BestOf


class BestOfFlags(NamedTuple):
    """The flags that `define_best_of` defines."""

    best_of: "flags.FlagHolder[Any]"
    judge: "flags.FlagHolder[Any]"
    judge_option: "flags.FlagHolder[Any]"

    def make(self, model: Callable[[], "Pretrained"]) -> "BestOf | None":
        """Returns the selection; None without `--best_of`.

        Args:
          model: Returns the loaded model.

        Raises:
          JanusError: The judge cannot be used (`make_reward`), or a flag of the judge has no effect.
        """
        if self.best_of.value == 1:
            if self.judge.present or self.judge_option.value:
                raise JanusError("--judge needs --best_of, the number of images from which it selects.")
            return None
        from janus_jax.generation.best_of import BestOf

        return BestOf(
            self.best_of.value, make_reward(self.judge.value, self.judge_option.value, "--judge", model=model)
        )

    def setting(self) -> dict[str, Any]:
        """Returns everything that the selection depends on; empty without `--best_of`."""
        if self.best_of.value == 1:
            return {}
        names = ("best_of", "judge", "judge_option")
        return {name: holder.value for name, holder in zip(names, self, strict=True) if holder.value}


def define_best_of() -> BestOfFlags:
    """Defines the flags `--best_of`, `--judge` and `--judge_option`."""
    found = BestOfFlags(
        flags.DEFINE_integer(
            "best_of", 1, "number of candidates for each image, of which --judge selects one", lower_bound=1
        ),
        flags.DEFINE_string(
            "judge", "self", "reward that selects, as NAME, MODULE:NAME or MODULE:FUNCTION; self: the model itself"
        ),
        flags.DEFINE_multi_string("judge_option", [], "NAME=VALUE, an option of the judge; can be repeated"),
    )
    cli.flag_group("Best of N", *found)
    return found
