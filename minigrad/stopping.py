"""When a run ends before its last step: a loss that is low enough, or one that no longer falls."""

import math
from typing import Any


class Stopping:
    """Watches the judged loss.

    Args:
        patience: judgements in a row without a new lowest loss after which to stop; None: never.
        target: loss at or below which to stop; None: never.

    Attributes:
        lowest: the lowest loss judged so far.
        reason: why to stop, in words; empty while there is no reason to.
    """

    def __init__(self, patience: int | None, target: float | None) -> None:
        self.lowest = math.inf
        self.reason = ""
        self._patience = patience
        self._target = target
        self._in_vain = 0

    def judged(self, loss: float) -> bool:
        """Take note of a judged loss, and return whether it is the lowest so far."""
        lower = loss < self.lowest
        self.lowest = loss if lower else self.lowest
        self._in_vain = 0 if lower else self._in_vain + 1
        if self._target is not None and loss <= self._target:
            self.reason = f"target_loss={self._target:g} is reached"
        elif self._patience is not None and self._in_vain >= self._patience:
            self.reason = f"no lower test/loss than {self.lowest:.4g} in {self._in_vain} judgements"
        return lower

    def state_dict(self) -> dict[str, Any]:
        """Return what the next judgement depends on."""
        return {"lowest": self.lowest, "in_vain": self._in_vain}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.lowest = float(saved["lowest"])
        self._in_vain = int(saved["in_vain"])
