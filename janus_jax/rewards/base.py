"""Rewards: functions of prompts and images, found by name.

    def brightness(prompts, images, metadata):
        return images.mean(axis=(1, 2, 3)) / 255

`MODULE:brightness` is the name of this reward. A reward that loads files or has settings is a registered class:

    @register_reward("aesthetic")
    @dataclass(frozen=True)
    class Aesthetic:
        weights: str
        batch_size: int = 32

        def __call__(self, prompts, images, metadata):
            ...

Its fields are its options. Options may be given as text; they are converted to the types of the fields.
"""

import functools
import inspect
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from jaxtyping import Float, UInt8

from janus_jax.errors import JanusError, RunStopped, did_you_mean, similar_names
from janus_jax.registries import find_registered_or_attribute, register


class RewardFailed(JanusError):
    """The code of a reward has raised an exception."""


class Reward(Protocol):
    """Scores images."""

    def __call__(
        self, prompts: Sequence[str], images: UInt8[np.ndarray, "B H W 3"], metadata: Sequence[Mapping[str, Any]], /
    ) -> Float[np.ndarray, " B"]:
        """Returns one finite number for each image; higher is better.

        Args:
          prompts: The prompt of each image.
          images: RGB images.
          metadata: Further values of each image's prompt, such as the objects that a detector looks for.

        Raises:
          JanusError: The images cannot be scored.
          RewardUnavailable: A service does not answer. The same command continues the run later.
        """
        ...


RewardFactory = Callable[..., Reward]
"""Class or function whose keyword arguments are the options of a reward. The argument `model` is not an option: it is
a function that returns the current model (`janus_jax.Pretrained`)."""

T = TypeVar("T", bound=RewardFactory)

REWARDS: dict[str, RewardFactory] = {}
"""All registered rewards by name."""


def register_reward(name: str) -> Callable[[T], T]:
    """Decorator that registers a class or function that returns a reward, so that it is found by its name.

    Raises:
      JanusError: A reward of this name is registered already.
    """

    def decorate(factory: T) -> T:
        register(REWARDS, name, factory, "reward")
        return factory

    return decorate


def make_reward(
    name: str,
    options: Mapping[str, Any] | Iterable[str] = (),
    field: str = "reward",
    *,
    model: Callable[[], Any] | None = None,
) -> Reward:
    """Returns the reward of a name, which checks the values that it computes.

    Args:
      name: `NAME` of a registered reward; `MODULE:NAME`, where the module registers the reward; or `MODULE:FUNCTION`,
        where the function itself is the reward, and its further arguments are the options.
      options: Options by name, or texts `NAME=VALUE`. Texts are converted to the types of the options.
      field: Flag or config field that contains the name, for messages.
      model: Returns the current model, for rewards that ask it.

    Raises:
      JanusError: There is no such reward, an option is unknown, missing or has a wrong value, or the reward cannot be
        used. The reward raises it for wrong values of the user's code (`checked`).
    """
    found: Any = find_registered_or_attribute(REWARDS, name, field)
    where = f"{field} {name}"
    if not callable(found):
        raise JanusError(f"{where} is not a function; name a function of prompts, images and metadata.")
    given = dict(options) if isinstance(options, Mapping) else _split(options, where)
    if isinstance(found, type) or found in REWARDS.values():
        return checked(found(**_bind(found, given, where, model)), name)
    function: Any = functools.partial(found, **_bind(found, given, where, model, skip=3))
    return checked(function, name)


def checked(reward: Reward, name: str) -> Reward:
    """Returns a reward that raises `JanusError` for exceptions, a wrong number of values, NaN and infinity."""

    def call(
        prompts: Sequence[str], images: UInt8[np.ndarray, "B H W 3"], metadata: Sequence[Mapping[str, Any]]
    ) -> Float[np.ndarray, " B"]:
        try:
            returned = reward(prompts, images, metadata)
        except (JanusError, RunStopped):
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise RewardFailed(f"The reward {name} failed at {last.filename}:{last.lineno} ({reason}).") from error
        return check_values(returned, prompts, name)

    return call


def check_values(returned: Any, prompts: Sequence[str], name: str) -> Float[np.ndarray, " B"]:
    """Returns the values of a reward in float32.

    Raises:
      JanusError: The values are not one finite number for each prompt.
    """
    try:
        values = np.asarray(returned, np.float32)
    except (TypeError, ValueError) as error:
        raise JanusError(f"The reward {name} returned {returned!r:.80}; return one number for each image.") from error
    if values.shape != (len(prompts),):
        raise JanusError(
            f"The reward {name} returned values of shape {list(values.shape)} for {len(prompts)} images; return one "
            f"number for each image."
        )
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise JanusError(
            f"The reward {name} is {values[bad]} for image {bad}, whose prompt is {prompts[bad]!r:.80}; return finite "
            f"numbers."
        )
    return values


def _split(texts: Iterable[str], where: str) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for name, equals, _ in pairs:
        if not equals:
            raise JanusError(f"{where}: the option {name!r} has no value; give NAME=VALUE.")
    return {name: value for name, _, value in pairs}


def _bind(
    function: Callable[..., Any],
    given: Mapping[str, Any],
    where: str,
    model: Callable[[], Any] | None,
    *,
    skip: int = 0,
) -> dict[str, Any]:
    """Returns the arguments of a function: the given options, converted to their types, and the model.

    Args:
      skip: Number of arguments at the start that are no options.
    """
    parameters = dict(list(inspect.signature(function).parameters.items())[skip:])
    hints = typing.get_type_hints(cast(Any, function).__init__ if isinstance(function, type) else function)
    names = [name for name in parameters if name != "model"]
    for name in given:
        if name not in names:
            allowed = ", ".join(names) or "(none)"
            raise JanusError(
                f"{where} has no option {name!r}.{did_you_mean(similar_names(name, names))} Options: {allowed}."
            )
    for name in names:
        if parameters[name].default is inspect.Parameter.empty and name not in given:
            raise JanusError(f"{where} needs the option {name}.")
    kinds = {name: hints.get(name, type(parameters[name].default)) for name in given}
    arguments = {name: _convert(value, kinds[name], f"{where}: the option {name}") for name, value in given.items()}
    if "model" in parameters:
        if model is None:
            raise JanusError(f"{where} asks the model itself, and there is none here; use another reward.")
        arguments["model"] = model
    return arguments


_WORDS = {int: "a whole number", float: "a number", bool: "true or false"}


def _convert(value: Any, kind: Any, where: str) -> Any:
    """Converts a text to the type of an option. Other values are returned unchanged."""
    if not isinstance(value, str):
        return value
    if isinstance(kind, types.UnionType):  # T | None
        kind = next(one for one in typing.get_args(kind) if one is not type(None))
    if typing.get_origin(kind) is tuple:
        return tuple(_convert(item.strip(), typing.get_args(kind)[0], where) for item in value.split(","))
    try:
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        return kind(value) if kind in (int, float) else value
    except (KeyError, ValueError):
        raise JanusError(f"{where} is {value!r}; it must be {_WORDS[kind]}.") from None
