import io
import random
from collections.abc import Iterator

import numpy
import pytest
import torch

from minigrad import generators


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave the generators as they were found."""
    before = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(before[0])
    numpy.random.set_state(before[1])
    torch.set_rng_state(before[2])


def draw() -> list[list[float]]:
    """Numbers of every generator, of several kinds; an odd number of normal ones leaves one in stock."""
    return [
        [random.random(), random.gauss(0, 1), random.randrange(10**20)],
        [*numpy.random.rand(2), *numpy.random.randn(3), float(numpy.random.randint(1 << 60))],
        [*torch.rand(2).tolist(), *torch.randn(3).tolist(), *torch.randn(20).tolist(), *torch.randperm(5).tolist()],
    ]


def through_a_file(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("passed", [lambda state: state, through_a_file], ids=["in memory", "through a file"])
@pytest.mark.parametrize("draws", [0, 1, 300])
def test_all_go_on_where_they_were(passed, draws):
    generators.seed_all(5)
    for _ in range(draws):
        draw()
    state = passed(generators.state_dict())
    expected = [draw() for _ in range(300)]  # beyond the 624 words that NumPy and Python make at a time
    generators.seed_all(6)
    draw()
    generators.load_state_dict(state)
    assert [draw() for _ in range(300)] == expected


def test_looking_changes_nothing():
    generators.seed_all(5)
    expected = draw()
    generators.seed_all(5)
    generators.state_dict()
    assert draw() == expected


def test_a_state_does_not_change_with_what_is_drawn_later():
    generators.seed_all(5)
    state = generators.state_dict()
    expected = draw()
    for _ in range(2):
        generators.load_state_dict(state)
        assert draw() == expected


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_a_seed_sets_all(seed):
    generators.seed_all(seed)
    expected = draw()
    generators.seed_all(seed)
    assert draw() == expected
    generators.seed_all(seed ^ 2)
    assert not any(a == b for a, b in zip(draw(), expected, strict=True))


def test_states_of_gpus_that_are_not_there_are_left_out():
    generators.seed_all(5)
    state = generators.state_dict()
    expected = draw()
    there = torch.cuda.device_count()
    generators.load_state_dict({**state, "cuda": [*state["cuda"], *[torch.zeros(16, dtype=torch.uint8)] * (there + 1)]})
    assert draw() == expected


@pytest.mark.gpu
def test_the_gpu_s_goes_on_where_it_was():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA or ROCm device")
    generators.seed_all(5)
    torch.rand(3, device="cuda")
    state = through_a_file(generators.state_dict())
    expected = torch.rand(3, device="cuda")
    generators.load_state_dict(state)
    assert torch.equal(torch.rand(3, device="cuda"), expected)
