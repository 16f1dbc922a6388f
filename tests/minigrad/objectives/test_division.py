import pytest
import torch

from minigrad.errors import UserError
from minigrad.objectives.division import divided


@pytest.mark.parametrize(("samples", "size"), [(1, 1), (7, 2), (7, 7), (64, 3)])
def test_parts_are_all_of_the_batch_and_nearly_equal(samples, size):
    batch = torch.arange(2 * samples).view(samples, 2), torch.arange(samples)
    parts, shares = zip(*(divided(batch, rank, size) for rank in range(size)), strict=True)
    for whole, pieces in zip(batch, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(pieces), whole)
    assert sum(shares) == pytest.approx(1, rel=1e-15)
    lengths = [len(part[0]) for part in parts]
    assert shares == tuple(length / samples for length in lengths)
    assert max(lengths) - min(lengths) <= 1


def test_more_parts_than_samples_are_refused():
    with pytest.raises(UserError, match="a batch has 2 samples, fewer than the 3 ranks; use a larger batch_size"):
        divided((torch.zeros(2, 4),), 0, 3)
