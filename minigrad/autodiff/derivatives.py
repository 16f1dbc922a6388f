"""Derivatives of whole functions, by torch.func: gradient, Jacobian, Hessian, and the Hessian times a vector.

They take a function and return values, where `backward()` takes a value and leaves gradients in tensors. x may be a
tensor or a tree of tensors, such as a model's parameters by name, used with `torch.func.functional_call`. They nest,
and work under `torch.func.vmap`. A function that ignores or detaches x has derivative 0, as for all of torch.func.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# A tensor, or lists, tuples and dicts of trees.
Tree = TypeVar("Tree")


def gradient(function: Callable[[Tree], Tensor], x: Tree) -> Tree:
    """Return the gradient of a function whose value is one number: `torch.func.grad` at x.

    Args:
        function: from x to a () tensor.
        x: a floating-point tensor of any shape, or a tree of them.
    Returns: df/dx, the tree and the shapes of x; differentiable in turn.

    Raises:
        TypeError: x holds something else, or the value is no floating-point tensor.
        ValueError: the value has more than one element or dimension.
    """
    _check_floating(x, "x")
    return torch.func.grad(_scalar(function))(x)  # type: ignore[no-any-return]


def jacobian(function: Callable[[Tree], Any], x: Tree) -> Any:
    """Return all partial derivatives of a function, in reverse mode: `torch.func.jacrev` at x.

    Args:
        function: from x to a tensor (outputs...), or a tree of them.
        x: a floating-point tensor (inputs...), or a tree of them.
    Returns: a tensor (outputs..., inputs...); for trees, the output's tree with x's tree in each place.

    Raises:
        TypeError: x holds something else. Of outputs that are no tensors torch raises its own errors.
    """
    _check_floating(x, "x")
    return torch.func.jacrev(function)(x)


def hessian(function: Callable[[Tree], Tensor], x: Tree) -> Any:
    """Return all second derivatives of a function whose value is one number: `torch.func.hessian` at x.

    Forward mode over reverse mode. n elements of x give n^2 numbers; `hessian_vector_product` needs none of these.

    Args:
        function: from x to a () tensor; its backward pass must support forward mode, as minigrad's and torch's do.
        x: a floating-point tensor (inputs...), or a tree of them.
    Returns: a tensor (inputs..., inputs...), symmetric; for a tree, x's tree with x's tree in each place.

    Raises:
        TypeError: x holds something else, or the value is no floating-point tensor.
        ValueError: the value has more than one element or dimension.
    """
    _check_floating(x, "x")
    return torch.func.hessian(_scalar(function))(x)


def hessian_vector_product(function: Callable[[Tree], Tensor], x: Tree, vector: Tree) -> Tree:
    """Return the Hessian times a vector for the price of some gradients: the gradient's derivative along the vector.

    Forward mode over reverse mode, without the Hessian. Source: Pearlmutter, Fast exact multiplication by the Hessian,
    Neural Computation 6(1), 1994.

    Args:
        function: from x to a () tensor; its backward pass must support forward mode, as minigrad's and torch's do.
        x: a floating-point tensor of any shape, or a tree of them.
        vector: the tree, shapes and dtypes of x; of the same types, its dicts with the same keys in the same order.
    Returns: H v, the tree and the shapes of x.

    Raises:
        TypeError: x holds something else, the value is no floating-point tensor, or the vector's dtypes are not x's.
        ValueError: the value has more than one element or dimension, or the vector's tree or shapes are not x's.
    """
    _check_floating(x, "x")
    _check_floating(vector, "vector")
    _check_alike(x, vector)
    return torch.func.jvp(torch.func.grad(_scalar(function)), (x,), (vector,))[1]  # type: ignore[no-any-return]


def _scalar(function: Callable[[Tree], Tensor]) -> Callable[[Tree], Tensor]:
    """Return the function with a check of its value."""

    def checked(x: Tree) -> Tensor:
        value = function(x)
        if not isinstance(value, Tensor):
            raise TypeError(f"the function's value is a {type(value).__name__}: return a () tensor")
        if value.dim() != 0:
            raise ValueError(
                f"the function's value is {tuple(value.shape)}: return a () tensor, such as a sum, or take the jacobian"
            )
        if not value.is_floating_point():
            raise TypeError(f"the function's value is {value.dtype}: return a floating-point tensor")
        return value

    return checked


def _check_floating(tree: object, name: str) -> None:
    """Raise a TypeError unless all that a tree holds is floating-point tensors, and there is one."""
    leaves = pytree.tree_leaves_with_path(tree)
    if not leaves:
        raise TypeError(f"`{name}` holds no tensor: pass a floating-point tensor, or a list, tuple or dict of them")
    for path, leaf in leaves:
        place = f"`{name}{pytree.keystr(path)}`"
        if not isinstance(leaf, Tensor):
            raise TypeError(f"{place} is a {type(leaf).__name__}: pass a floating-point tensor")
        if not leaf.is_floating_point():
            raise TypeError(
                f"{place} is {leaf.dtype}: convert it to a floating-point dtype, or bind it to the function"
            )


def _check_alike(x: object, vector: object) -> None:
    """Raise unless a vector has x's tree, shapes and dtypes."""
    if pytree.tree_structure(x) != pytree.tree_structure(vector):
        raise ValueError("`vector` is no tree like `x`: pass the same lists, tuples and dicts, with the same keys")
    for (path, ours), theirs in zip(pytree.tree_leaves_with_path(x), pytree.tree_leaves(vector), strict=True):
        place = pytree.keystr(path)
        if ours.shape != theirs.shape:
            raise ValueError(
                f"`vector{place}` is {tuple(theirs.shape)} and `x{place}` is {tuple(ours.shape)}: pass the same shapes"
            )
        if ours.dtype != theirs.dtype:
            raise TypeError(f"`vector{place}` is {theirs.dtype} and `x{place}` is {ours.dtype}: pass the same dtypes")
