"""Tests of products with a wider dtype than their operands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.models.layers import product
from janus_jax.training.flops import equations

BATCHED = (((2,), (2,)), ((0,), (0,)))


@pytest.fixture
def operands():
    random = np.random.default_rng(0)
    return [jnp.asarray(random.standard_normal(shape), jnp.bfloat16) for shape in ((2, 3, 5), (2, 4, 5))]


def loss(x, y):
    return jnp.square(product(x, y, BATCHED, jnp.float32)).sum()


def exact(x, y):
    return jnp.square(jnp.einsum("bik,bjk->bij", x, y)).sum()


@pytest.mark.parametrize("argnums", [0, 1, (0, 1)])
def test_gradient_equals_that_of_the_exact_product(operands, argnums):
    found = jax.tree.leaves(jax.grad(loss, argnums)(*operands))
    widened = [operand.astype(jnp.float32) for operand in operands]
    expected = jax.tree.leaves(jax.grad(exact, argnums)(*widened))
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.dtype == jnp.bfloat16
        np.testing.assert_allclose(actual.astype(jnp.float32), wanted, rtol=0.02, atol=0.05)


@pytest.mark.parametrize(("argnums", "products"), [(0, 2), (1, 2), ((0, 1), 3)])
def test_gradient_products_use_the_operands_dtype(operands, argnums, products):
    found = equations(jax.make_jaxpr(jax.value_and_grad(loss, argnums))(*operands).jaxpr)
    dtypes = [[var.aval.dtype for var in e.invars] for e, _ in found if e.primitive.name == "dot_general"]
    assert dtypes == [[jnp.bfloat16, jnp.bfloat16]] * products
