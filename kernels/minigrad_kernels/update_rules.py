"""The update rules as device functions: how an element of a parameter and of its state changes.

What the rules of `minigrad.rules` do to whole tensors, for one element, in the numbers of `double_word`: float32 and
float64 in two words, so that the step is rounded once, on the way out; the half types in one float32, which has digits
enough to spare. Sources: those that `minigrad.rules` names.
"""

from __future__ import annotations

import triton
import triton.language as tl

from minigrad_kernels.double_word import minus, over, plus, root, times

# The coefficients that a step goes by, by their place in the table that the kernels read.
LEARNING_RATE = tl.constexpr(0)
CLIP = tl.constexpr(1)  # factor of the gradient
SHRINK = tl.constexpr(2)  # factor of the parameter: 1 - learning_rate * weight_decay, decoupled
STEP_SIZE = tl.constexpr(3)  # learning_rate / (1 - beta1^updates)
ROOT_FACTOR = tl.constexpr(4)  # 1 / sqrt(1 - beta2^updates)
# The rest are options, and never change.
WEIGHT_DECAY = tl.constexpr(5)  # coupled
FIRST = tl.constexpr(6)  # momentum or beta1
FIRST_REST = tl.constexpr(7)  # 1 - beta1
SECOND = tl.constexpr(8)  # decay or beta2
SECOND_REST = tl.constexpr(9)
EPSILON = tl.constexpr(10)
CLIP_NORM = tl.constexpr(11)
COEFFICIENTS = 12

STATES = {"gradient_descent": 0, "momentum": 1, "nesterov": 1, "rmsprop": 1, "adam": 2, "adamw": 2}
"""How many tensors like each parameter a rule keeps."""
COUNTING = ("adam", "adamw")
"""The rules that count updates."""


@triton.jit
def coefficient(coefficients_ptr, INDEX: tl.constexpr, WORDS: tl.constexpr):
    """Return a coefficient of the table, in so many words."""
    if WORDS == 1:
        return (tl.load(coefficients_ptr + 2 * INDEX),)
    else:
        return tl.load(coefficients_ptr + 2 * INDEX), tl.load(coefficients_ptr + 2 * INDEX + 1)


@triton.jit
def number(x, WORDS: tl.constexpr):
    """Return x as a number of so many words."""
    if WORDS == 1:
        return (x,)
    else:
        return x, tl.zeros_like(x)


@triton.jit
def updated(
    p, g, state, coefficients_ptr,
    RULE: tl.constexpr, CLIPS: tl.constexpr, DECAYS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Return what a parameter becomes and the tuple of what its state becomes, rounded to one word.

    Parameter p, gradient g and the tuple of its state are float32 or float64; a coefficient takes two words.
    """
    parameter = number(p, WORDS)
    gradient = number(g, WORDS)
    if CLIPS:
        gradient = times(gradient, coefficient(coefficients_ptr, CLIP, WORDS))
    if DECAYS and RULE != "adamw":
        gradient = plus(gradient, times(parameter, coefficient(coefficients_ptr, WEIGHT_DECAY, WORDS)))
    learning_rate = coefficient(coefficients_ptr, LEARNING_RATE, WORDS)
    if RULE == "gradient_descent":
        return minus(parameter, times(gradient, learning_rate))[0], ()
    elif RULE == "momentum" or RULE == "nesterov":
        momentum = coefficient(coefficients_ptr, FIRST, WORDS)
        velocity = plus(times(number(state[0], WORDS), momentum), gradient)
        direction = plus(gradient, times(velocity, momentum)) if RULE == "nesterov" else velocity
        return minus(parameter, times(direction, learning_rate))[0], (velocity[0],)
    elif RULE == "rmsprop":
        square = _mean(state[0], times(gradient, gradient), SECOND, SECOND_REST, coefficients_ptr, WORDS)
        denominator = plus(root(square), coefficient(coefficients_ptr, EPSILON, WORDS))
        return minus(parameter, over(times(gradient, learning_rate), denominator))[0], (square[0],)
    else:
        mean = _mean(state[0], gradient, FIRST, FIRST_REST, coefficients_ptr, WORDS)
        square = _mean(state[1], times(gradient, gradient), SECOND, SECOND_REST, coefficients_ptr, WORDS)
        corrected = times(root(square), coefficient(coefficients_ptr, ROOT_FACTOR, WORDS))
        denominator = plus(corrected, coefficient(coefficients_ptr, EPSILON, WORDS))
        step = over(times(mean, coefficient(coefficients_ptr, STEP_SIZE, WORDS)), denominator)
        if DECAYS and RULE == "adamw":
            parameter = times(parameter, coefficient(coefficients_ptr, SHRINK, WORDS))
        return minus(parameter, step)[0], (mean[0], square[0])


@triton.jit
def _mean(state, value, KEPT: tl.constexpr, REST: tl.constexpr, coefficients_ptr, WORDS: tl.constexpr):
    """Return the running mean after one more value."""
    kept = times(number(state, WORDS), coefficient(coefficients_ptr, KEPT, WORDS))
    return plus(kept, times(value, coefficient(coefficients_ptr, REST, WORDS)))
