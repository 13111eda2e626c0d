"""What a function would compute, read off its jaxpr: nothing is compiled and nothing runs."""

import math

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params


def equations(jaxpr, times=1):
    """Every equation within a jaxpr, however deep, and how often it is run: once of a loop that turns as data says."""
    for equation in jaxpr.eqns:
        inner = times * equation.params["length"] if equation.primitive.name == "scan" else times
        found = list(jaxprs_in_params(equation.params))
        if not found:
            yield equation, times
        for sub in found:
            yield from equations(sub, inner)


def flops(function, *arguments):
    """Floating-point operations of matrix products and convolutions."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return sum(times * _flops(equation) for equation, times in equations(jaxpr))


def _flops(equation):
    out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    match equation.primitive.name:
        case "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            return 2 * out * math.prod(shape[axis] for axis in contracted)
        case "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            return 2 * out * math.prod(kernel) // outputs
    return 0


def largest(function, *arguments):
    """Numbers in the largest array that the function makes."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return max(int(np.prod(var.aval.shape)) for equation, _ in equations(jaxpr) for var in equation.outvars)
