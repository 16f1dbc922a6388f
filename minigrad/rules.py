"""Update rules, written out: stateless functions that change parameters in place from their gradients.

Every rule is called as `rule(parameters, gradients, learning_rate)` where autograd records nothing. What a rule needs
beyond that are keyword-only parameters, set from `configs/rule/<name>.yaml`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Rule = Callable[[list[Tensor], list[Tensor], float], None]


def gradient_descent(parameters: list[Tensor], gradients: list[Tensor], learning_rate: float) -> None:
    """Take one step down the gradient: `parameter -= learning_rate * gradient`.

    Args:
        parameters: changed in place.
        gradients: one per parameter, of its shape and dtype.
        learning_rate: factor of the gradient.

    Source: A. Cauchy, "Méthode générale pour la résolution des systèmes d'équations simultanées", Comptes rendus
        hebdomadaires des séances de l'Académie des sciences 25 (1847), pages 536-538.
    """
    torch._foreach_add_(parameters, gradients, alpha=-learning_rate)


RULES: dict[str, Rule] = {"gradient_descent": gradient_descent}
