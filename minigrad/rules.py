"""Update rules, written out: stateless functions that change parameters and state in place from gradients.

Every rule is called as `rule(parameters, gradients, learning_rate, **state)` where autograd records nothing. Its
positional parameters after `learning_rate` are its state, by name: `list[Tensor]` is one tensor like each parameter,
`Tensor` one number on their device; both start at zero (`new_state`). Its keyword-only parameters are its options, set
from `configs/rule/<name>.yaml`; `check_rule` checks their ranges, once, when a rule is set up.

The count of updates is on the device because an update that is guarded away must not count. So nothing here waits for
the device, and a step can be captured in a graph.

`weight_decay` is coupled in all rules but `adamw`: the gradient of `weight_decay / 2 * parameter^2` is added to the
gradient, and what the rule does to gradients it does to the decay too.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import minigrad_kernels as kernels
from minigrad.options import Range, check_options, options_of

if TYPE_CHECKING:
    from minigrad_kernels.fused_update import FusedUpdate

Rule = Callable[..., None]
State = dict[str, list[Tensor] | Tensor]


def gradient_descent(
    parameters: list[Tensor], gradients: list[Tensor], learning_rate: float, *, weight_decay: float = 0.0
) -> None:
    """Take one step down the gradient: `parameter -= learning_rate * gradient`.

    Args:
        parameters: changed in place.
        gradients: one per parameter, of its shape and dtype.
        learning_rate: factor of the gradient.
        weight_decay: coupled.

    Source: A. Cauchy, "Méthode générale pour la résolution des systèmes d'équations simultanées", Comptes rendus
        hebdomadaires des séances de l'Académie des sciences 25 (1847), pages 536-538.
    """
    gradients = _with_decay(parameters, gradients, weight_decay)
    torch._foreach_add_(parameters, gradients, alpha=-learning_rate)


def momentum(
    parameters: list[Tensor],
    gradients: list[Tensor],
    learning_rate: float,
    velocity: list[Tensor],
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> None:
    """Step along a velocity that gathers gradients, as a heavy ball rolls.

        velocity = momentum * velocity + gradient
        parameter -= learning_rate * velocity

    The velocity points uphill, is in units of the gradient and has no factor 1 - momentum, as in torch.optim.SGD: a
    steady gradient is followed at 1 / (1 - momentum) times the learning rate. Sutskever et al. (2013, equations 1 and
    2) keep `-learning_rate * velocity` instead: the same while the learning rate is, but where it changes, theirs
    takes effect as fast as the velocity decays, and this one at once.

    Args:
        parameters: changed in place.
        gradients: one per parameter, of its shape and dtype.
        learning_rate: factor of the velocity.
        velocity: state, changed in place.
        momentum: what remains of the velocity, from 0 to below 1.
        weight_decay: coupled.

    Source: B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", USSR Computational
        Mathematics and Mathematical Physics 4(5) (1964), pages 1-17.
    """
    gradients = _with_decay(parameters, gradients, weight_decay)
    torch._foreach_mul_(velocity, momentum)
    torch._foreach_add_(velocity, gradients)
    torch._foreach_add_(parameters, velocity, alpha=-learning_rate)


def nesterov(
    parameters: list[Tensor],
    gradients: list[Tensor],
    learning_rate: float,
    velocity: list[Tensor],
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> None:
    """Step along the velocity as it will be one step ahead.

        velocity = momentum * velocity + gradient
        parameter -= learning_rate * (gradient + momentum * velocity)

    Textbooks evaluate the gradient at the point ahead, `parameter - learning_rate * momentum * velocity`. Here, as in
    torch.optim.SGD, `parameter` *is* that point, so that the gradient is taken where the loss is: Bengio et al. (2013)
    rewrite it so. Sign and scale of the velocity are those of `momentum`.

    Args:
        parameters: changed in place.
        gradients: one per parameter, of its shape and dtype.
        learning_rate: factor of the velocity.
        velocity: state, changed in place.
        momentum: what remains of the velocity, from 0 to below 1.
        weight_decay: coupled.

    Source: Y. Nesterov, "A method of solving a convex programming problem with convergence rate O(1/k^2)", Soviet
        Mathematics Doklady 27 (1983), pages 372-376; with a constant momentum, I. Sutskever, J. Martens, G. Dahl and
        G. Hinton, "On the importance of initialization and momentum in deep learning", ICML 2013, equations 3 and 4;
        as here, Y. Bengio, N. Boulanger-Lewandowski and R. Pascanu, "Advances in optimizing recurrent networks",
        ICASSP 2013.
    """
    gradients = _with_decay(parameters, gradients, weight_decay)
    torch._foreach_mul_(velocity, momentum)
    torch._foreach_add_(velocity, gradients)
    ahead = torch._foreach_add(gradients, velocity, alpha=momentum)
    torch._foreach_add_(parameters, ahead, alpha=-learning_rate)


def rmsprop(
    parameters: list[Tensor],
    gradients: list[Tensor],
    learning_rate: float,
    square: list[Tensor],
    *,
    decay: float = 0.99,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """Divide every gradient by the root of a running mean of its square.

        square = decay * square + (1 - decay) * gradient^2
        parameter -= learning_rate * gradient / (sqrt(square) + epsilon)

    As in torch.optim.RMSprop, epsilon is outside the root, the mean is neither centred nor corrected for its start at
    zero (the first steps are up to 1 / sqrt(1 - decay) times the learning rate), and decay is 0.99 where the source
    has 0.9.

    Args:
        parameters: changed in place.
        gradients: one per parameter, of its shape and dtype.
        learning_rate: about how far an element moves per step.
        square: state, changed in place.
        decay: what remains of the mean, from 0 to below 1.
        epsilon: above 0. float16 needs 1e-7 or more: 1e-8 rounds to 0 there, and a gradient of 0 then gives 0 / 0.
        weight_decay: coupled.

    Source: T. Tieleman and G. Hinton, "Lecture 6.5: rmsprop", Coursera: Neural Networks for Machine Learning, 2012.
    """
    gradients = _with_decay(parameters, gradients, weight_decay)
    torch._foreach_mul_(square, decay)
    torch._foreach_addcmul_(square, gradients, gradients, value=1 - decay)
    denominator = torch._foreach_sqrt(square)
    torch._foreach_add_(denominator, epsilon)
    torch._foreach_addcdiv_(parameters, gradients, denominator, value=-learning_rate)


def adam(
    parameters: list[Tensor],
    gradients: list[Tensor],
    learning_rate: float,
    mean: list[Tensor],
    square: list[Tensor],
    updates: Tensor,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """Divide a running mean of the gradient by the root of a running mean of its square, both freed of their bias.

        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient^2
        mean_hat = mean / (1 - beta1^updates)
        square_hat = square / (1 - beta2^updates)
        parameter -= learning_rate * mean_hat / (sqrt(square_hat) + epsilon)

    `updates` counts this one too. Epsilon is outside the root and added after the correction, as in the source's
    algorithm and in torch.optim.Adam; the faster form at the end of the source's section 2 scales it.

    Args:
        parameters: changed in place.
        gradients: one per parameter, of its shape and dtype.
        learning_rate: about how far an element moves per step, at most.
        mean: state, changed in place; not corrected.
        square: state, changed in place; not corrected.
        updates: state, (), the number of updates made; changed in place.
        beta1: what remains of the mean, from 0 to below 1.
        beta2: what remains of the mean square, from 0 to below 1.
        epsilon: above 0. float16 needs 1e-7 or more: 1e-8 rounds to 0 there, and a gradient of 0 then gives 0 / 0.
        weight_decay: coupled.

    Source: D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1.
    """
    gradients = _with_decay(parameters, gradients, weight_decay)
    updates.add_(1)
    torch._foreach_lerp_(mean, gradients, 1 - beta1)
    torch._foreach_mul_(square, beta2)
    torch._foreach_addcmul_(square, gradients, gradients, value=1 - beta2)
    # foreach takes one kernel for all tensors only where the divisor has their dtype.
    dtype = max((parameter.dtype for parameter in parameters), key=lambda dtype: dtype.itemsize)
    mean_hat = torch._foreach_div(mean, (1 - beta1**updates).to(dtype))
    denominator = torch._foreach_div(square, (1 - beta2**updates).to(dtype))
    torch._foreach_sqrt_(denominator)
    torch._foreach_add_(denominator, epsilon)
    torch._foreach_addcdiv_(parameters, mean_hat, denominator, value=-learning_rate)


def adamw(
    parameters: list[Tensor],
    gradients: list[Tensor],
    learning_rate: float,
    mean: list[Tensor],
    square: list[Tensor],
    updates: Tensor,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
) -> None:
    """Shrink every parameter by a fraction, then do as `adam` does: the decay does not pass through its division.

        parameter *= 1 - learning_rate * weight_decay

    The decay is multiplied by the learning rate, as in torch.optim.AdamW; the source multiplies it by the schedule's
    factor alone, so its decay is this one times the base learning rate.

    Args:
        parameters: changed in place.
        gradients: one per parameter, of its shape and dtype.
        learning_rate: about how far an element moves per step, at most.
        mean: state, as in `adam`.
        square: state, as in `adam`.
        updates: state, as in `adam`.
        beta1: what remains of the mean, from 0 to below 1.
        beta2: what remains of the mean square, from 0 to below 1.
        epsilon: above 0; see `adam`.
        weight_decay: decoupled.

    Source: I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.
    """
    if weight_decay:
        torch._foreach_mul_(parameters, 1 - learning_rate * weight_decay)
    adam(parameters, gradients, learning_rate, mean, square, updates, beta1=beta1, beta2=beta2, epsilon=epsilon)


def _with_decay(parameters: list[Tensor], gradients: list[Tensor], weight_decay: float) -> list[Tensor]:
    """Return the gradients with `weight_decay * parameter` added, as new tensors; without decay, the gradients."""
    if not weight_decay:
        return gradients
    return list(torch._foreach_add(gradients, parameters, alpha=weight_decay))


RULES: dict[str, Rule] = {
    "gradient_descent": gradient_descent,
    "momentum": momentum,
    "nesterov": nesterov,
    "rmsprop": rmsprop,
    "adam": adam,
    "adamw": adamw,
}

_FRACTION: Range = (lambda value: 0 <= value < 1, "a number from 0 to below 1")

# An option's name means the same in every rule, so its range belongs to the name.
RANGES: dict[str, Range] = {
    "momentum": _FRACTION,
    "decay": _FRACTION,
    "beta1": _FRACTION,
    "beta2": _FRACTION,
    "epsilon": (lambda value: 0 < value < math.inf, "a finite number above 0"),
    "weight_decay": (lambda value: 0 <= value <= 1e6, "a number from 0 to 1e6"),
}


def check_rule(rule: Rule) -> None:
    """Check the options that a rule is bound to, its defaults included.

    Args:
        rule: a rule, or a functools.partial of one that binds its options.

    Raises:
        UserError: an option is out of its range; the message names it, its value and what was expected.
    """
    check_options(rule, "rule", RANGES)


def fused(
    rule: Rule,
    parameters: list[Tensor],
    state: State,
    *,
    clip_norm: float | None,
    stops: bool,
    directions: list[Tensor] | None,
) -> "FusedUpdate | None":
    """Return a rule as one kernel for these parameters; None for another than RULES, and where Triton does not run.

    Args:
        rule: a rule, or a functools.partial of one that binds its options.
        parameters: on one device.
        state: the rule's.
        clip_norm: as of `minigrad_kernels.FusedUpdate`, like the other two.
        stops: likewise.
        directions: likewise.
    """
    function = rule.func if isinstance(rule, partial) and not rule.args else rule
    name = next((name for name, known in RULES.items() if known is function), None)
    devices = {parameter.device for parameter in parameters}
    if name is None or len(devices) > 1 or kernels.path_for(parameters[0].device) != "triton":
        return None
    if not all(parameter.dtype in kernels.DTYPES for parameter in parameters):
        return None
    options = options_of(rule)
    return kernels.new_fused_update(
        name, options, parameters, state, clip_norm=clip_norm, stops=stops, directions=directions
    )


def new_state(rule: Rule, parameters: list[Tensor]) -> State:
    """Return the state with which a rule starts, by the names under which it takes it: all zeros.

    Args:
        rule: a rule, or a functools.partial of one that binds its options.
        parameters: those it will update, at least one, all on one device.

    Returns:
        For each state annotated `list[Tensor]`, a tensor like each parameter; for each annotated `Tensor`, one number:
        () float64, or float32 where the device has no float64.

    Raises:
        TypeError: the rule annotates a state otherwise.
    """
    device = parameters[0].device
    count_dtype = torch.float32 if device.type == "mps" else torch.float64
    given = inspect.signature(rule, eval_str=True).parameters.values()
    state: State = {}
    for parameter in [p for p in given if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD][3:]:
        if parameter.annotation == list[Tensor]:
            state[parameter.name] = [torch.zeros_like(like) for like in parameters]
        elif parameter.annotation is Tensor:
            state[parameter.name] = torch.zeros((), dtype=count_dtype, device=device)
        else:
            raise TypeError(
                f"the rule's state '{parameter.name}' is annotated {inspect.formatannotation(parameter.annotation)}: "
                "expected list[Tensor], a tensor like each parameter, or Tensor, one number; options are keyword-only"
            )
    return state
