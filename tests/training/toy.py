"""A two-layer model with logical axis names, which any mesh divides."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.training.optimizers import OptimizerConfig, make_optimizer
from janus_jax.training.param_paths import unbox
from janus_jax.training.state import create_state

CONFIG = OptimizerConfig(1e-2, weight_decay=0.1)


def boxed_params(key):
    """Trained and frozen."""
    # One call, because each call compiles.
    numbers = jax.random.normal(key, (1088,))

    def box(start, shape, *names):
        return nn.LogicallyPartitioned(numbers[start : start + math.prod(shape)].reshape(shape), names)

    trained = {
        "layers": {
            "fc": {
                "weight": box(0, (3, 16, 8), "layers", "mlp", "embed"),
                "bias": box(384, (3, 16), "layers", "mlp"),
            },
            "out": {"weight": box(432, (3, 8, 4, 4), "layers", "embed", "heads", "head_dim")},
        },
    }
    return trained, {"embed": {"embedding": box(816, (32, 8), "vocab", "embed")}}


def optimizer(config=CONFIG, steps=100):
    return make_optimizer(config, steps, boxed_params(jax.random.key(0))[0])


def make(seed, config=CONFIG, **options):
    return create_state(*boxed_params(jax.random.key(seed)), optimizer(config), **options)


def shardings(tree):
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def init_sharded(make, abstract, *arguments):
    """The state that `make` returns, initialized with the shardings of `abstract`."""
    return jax.jit(lambda *values: unbox(make(*values)), out_shardings=shardings(abstract))(*arguments)


def loss(params, frozen, ids):
    x = frozen["embed"]["embedding"][ids].astype(jnp.float32)
    for layer in range(3):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"])
        hidden = jnp.tanh(x @ block["fc"]["weight"].T + block["fc"]["bias"])
        x += jnp.einsum("dhk,bhk->bd", block["out"]["weight"], hidden.reshape(-1, 4, 4))
    return jnp.mean(x**2)


def step(state, seed, tx=None, **options):
    ids = np.random.default_rng(seed).integers(0, 32, 16)
    gradients = jax.grad(loss)(state.params, state.frozen, ids)
    return state.apply_gradients(gradients, tx or optimizer(), **options)
