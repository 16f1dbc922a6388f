"""The model of a run, back from its directory."""

from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from minigrad.checkpoints import Checkpoints
from minigrad.errors import UserError
from minigrad.models import rebuild


def load(run_dir: str | PathLike[str], checkpoint: str = "last") -> nn.Module:
    """Return the trained model of a run, on the CPU and in the dtype it was trained in.

    Neither the run's data nor its code are needed: the model is rebuilt from its last checkpoint. A network takes
    inputs (..., D) as they stand in the data, and gives (..., classes) logits, in the order of its `classes`, or (...)
    values of the target; see `minigrad.models.Predictor`. A function's point is given by `model.x`.

    Args:
        run_dir: the run's directory.
        checkpoint: "last", or "best" for the one with the lowest `test/loss`.

    Raises:
        UserError: there is no such checkpoint, or the file is not whole, or no model comes of it.
        ValueError: another `checkpoint` is named.
    """
    if checkpoint not in ("last", "best"):
        raise ValueError(f'`checkpoint` is {checkpoint!r}: pass "last" or "best"')
    content = _best(run_dir) if checkpoint == "best" else _last(run_dir)
    try:
        return rebuild(content["model"], content["trainer"]["parameters"]).eval()
    except Exception as error:  # whatever a file that was not written here makes of the constructors
        raise UserError(f"no model comes of the checkpoint in {run_dir}: {error}") from error


def saved_parameters(run_dir: str | PathLike[str]) -> dict[str, Tensor]:
    """Return the parameters in the last checkpoint of a run, by name, on the CPU.

    Raises:
        UserError: there is no checkpoint, or none is whole.
    """
    parameters: dict[str, Tensor] = _last(run_dir)["trainer"].get("parameters", {})
    return parameters


def _last(run_dir: str | PathLike[str]) -> dict[str, Any]:
    content = _checkpoints(run_dir).newest(complain=print)
    if content is None:
        raise UserError(f"{run_dir} holds no checkpoint: no run has saved one there")
    return content


def _best(run_dir: str | PathLike[str]) -> dict[str, Any]:
    return _checkpoints(run_dir).best()


def _checkpoints(run_dir: str | PathLike[str]) -> Checkpoints:
    return Checkpoints(Path(run_dir).expanduser() / "checkpoints", keep=1)
