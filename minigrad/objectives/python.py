"""The user's own function as an objective: the one place where a config names code."""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from minigrad.errors import UserError
from minigrad.objectives.function import Function
from minigrad.objectives.landscapes import Landscape


def python(
    function: str | None,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    *,
    start: list[float],
) -> Function:
    """Return the objective that minimises a function from a module of the user's.

    The module is imported as `python -m` would find it: the current directory first. The function takes a point of
    shape (D,), D the length of `start`, and returns a () floating-point tensor, computed by torch's operations. It is
    called here once, to check that, and gets one point at a time: a grid is evaluated in a loop. It gets (1,) where
    there is one variable, so that the same function can be written for any D; the parameter itself is () there, as in
    every other objective.

    Args:
        function: "package.module:name".
        device: where the point lies.
        dtype: of the point.
        start: where descent starts, a number per variable.

    Raises:
        UserError: there is no such function; `start` is empty or not finite; or the value there is no () floating-point
            tensor, is not finite, or has no gradient.
    """
    if not start:
        raise UserError(f"objective.start={start}: expected a list of finite numbers, one per variable")
    value = _one_by_one(_find(function), len(start))
    objective = Function(Landscape(str(function), value, start=tuple(start)), device, dtype, start=start)
    _check(objective, start)
    return objective


def _find(function: str | None) -> Callable[[Tensor], Tensor]:
    """Import what "package.module:name" names."""
    module_name, _, name = (function or "").partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), name]):
        came = "null" if function is None else function
        raise UserError(f"function={came}: expected package.module:name, a function from a tensor to a () tensor")
    here = os.getcwd()
    sys.path.insert(0, here)  # `python -m` has it there already, a console script has not
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # found, but what it imports is not
        raise UserError(
            f"function={function}: there is no module '{error.name}' in the current directory or installed"
        ) from None
    finally:
        with contextlib.suppress(ValueError):  # the module may have taken it out itself
            sys.path.remove(here)
    try:
        found = getattr(module, name)
    except AttributeError:
        raise UserError(f"function={function}: the module '{module_name}' has no '{name}'") from None
    if not callable(found):
        raise UserError(f"function={function}: expected a function, but '{name}' is of type {type(found).__name__}")
    return found  # type: ignore[no-any-return]  # what it takes and returns, `_check` finds out


def _one_by_one(function: Callable[[Tensor], Tensor], dimensions: int) -> Callable[[Tensor], Tensor]:
    """Turn a function of a point (D,) into a landscape's: of a point or a grid, without an axis for one variable."""

    def value(x: Tensor) -> Tensor:
        grid = x.shape if dimensions == 1 else x.shape[:-1]
        if not grid:
            return function(x.reshape(dimensions))
        return torch.stack([function(point) for point in x.reshape(-1, dimensions)]).reshape(grid)

    return value


def _check(objective: Function, start: list[float]) -> None:
    """Raise a UserError unless the function has a finite value and a gradient where descent starts."""
    key, value = f"function={objective.landscape.name}", objective.loss(None)
    expected = "expected a () floating-point tensor"
    if not isinstance(value, Tensor):
        raise UserError(f"{key}: {expected}, but it returns a value of type {type(value).__name__}")
    if value.shape != () or not value.is_floating_point():
        raise UserError(f"{key}: {expected}, but it returns a {tuple(value.shape)} tensor of {value.dtype}")
    if not value.requires_grad or torch.autograd.grad(value, objective.x, allow_unused=True)[0] is None:
        raise UserError(
            f"{key}: its value does not depend on the point; compute it from the point by torch's operations, "
            "without detach(), item() or numpy()"
        )
    if not value.isfinite():
        raise UserError(f"{key}: its value at objective.start={start} is {value.item()}; start where it is finite")
