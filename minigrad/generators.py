"""The generators of random numbers: Python's, NumPy's and PyTorch's, as one."""

import random
from typing import Any

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
    numpys = numpy.random.get_state(legacy=False)
    return {
        "python": [version, list(words), gauss],
        "numpy": {**numpys, "state": {**numpys["state"], "key": numpys["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def load_state_dict(saved: dict[str, Any]) -> None:
    """Set every generator to where `state_dict` found it; GPUs of which this machine has fewer are left out."""
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words), gauss))
    words = numpy.array(saved["numpy"]["state"]["key"], dtype=numpy.uint32)
    numpy.random.set_state({**saved["numpy"], "state": {**saved["numpy"]["state"], "key": words}})
    torch.set_rng_state(saved["torch"])
    for i, state in enumerate(saved["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, i)
