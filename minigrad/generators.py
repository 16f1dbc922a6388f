"""The generators of random numbers: Python's, NumPy's and PyTorch's, as one."""

import random
from typing import Any, cast

import numpy
import torch


def seed_all(seed: int) -> None:
    """Seed every generator, on every device; an integer from 0 to 2^32 - 1."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def state_dict() -> dict[str, Any]:
    """Return where every generator stands, as tensors and plain values."""
    version, words, gauss = random.getstate()
    name, words_of_numpy, *rest = cast(
        "tuple[Any, ...]", numpy.random.get_state()
    )  # as a table it takes five times as long
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, words_of_numpy.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def load_state_dict(saved: dict[str, Any]) -> None:
    """Set every generator to where `state_dict` found it; GPUs of which this machine has fewer are left out."""
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words), gauss))
    name, words_of_numpy, *rest = saved["numpy"]
    numpy.random.set_state((name, numpy.array(words_of_numpy, dtype=numpy.uint32), *rest))
    torch.set_rng_state(saved["torch"])
    for i, state in enumerate(saved["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, i)
