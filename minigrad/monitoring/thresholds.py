"""From where on a monitor calls something wrong, each number with its source."""

from dataclasses import dataclass

from minigrad.errors import UserError


@dataclass(frozen=True)
class Thresholds:
    """From where on something is wrong. "Chosen here": no source gives a number.

    What is called measured comes from healthy networks on scikit-learn's digits: two layers of 128 tanh units, and
    twelve of 64 ReLU units from He's initial scale.

    Args:
        share: a unit of sigmoid or tanh is saturated where f'(x) is below this share of its maximum. Chosen here: it
            learns at a twentieth of its best speed, from |x| = 2.2 on for tanh and 4.4 for sigmoid.
        vanishing: the flow gain of a layer, below. Chosen here: sigmoid, whose derivative is 1/4 at most, has 0.2.
        depth_vanishing: the norm of the gradient that leaves the first layer over that which leaves the last, below;
            Glorot and Bengio (2010) compare layers so. Chosen here: the learning rate that is right for the last layer
            is then 1,000 times too small for the first.
        exploding: the same ratio, above. Chosen here: the mirror image.
        saturated: fraction of a layer's units, above. Chosen here: most of them; 19 % were measured, with Adam.
        dead: fraction of a ReLU layer's units that never fire, above. Stanford's CS231n, "Neural networks 1", names
            40 % as what too high a learning rate can do. Chosen here: between that and the 11 % that were measured.
        false_zeros: fraction of the gradient, above. Chosen here: minigrad's activations have none while the gradient
            is within the dtype's range.
        ratio_high: update over weight, above: the learning rate is too large, if it stays so or if layers suffer.
            CS231n, "Neural networks 3": "somewhere around 1e-3". Chosen here: a hundred times that, as the first steps
            of Adam were measured at 1e-2.
        ratio_low: the same ratio, never as high: the learning rate is too small. Chosen here: a hundredth of that 1e-3.

    Raises:
        UserError: a number is out of its range. But for `share`, one end of each range turns its verdict off.
    """

    share: float = 0.05
    vanishing: float = 0.1
    depth_vanishing: float = 1e-3
    exploding: float = 1e3
    saturated: float = 0.5
    dead: float = 0.25
    false_zeros: float = 0.01
    ratio_high: float = 0.1
    ratio_low: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"share={self.share:g}: expected a number between 0 and 1")
        for name in ("vanishing", "depth_vanishing", "saturated", "dead", "false_zeros"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name):g}: expected a number from 0 to 1")
        if not self.exploding >= 1:
            raise UserError(f"exploding={self.exploding:g}: expected a number from 1 on")
        if not 0 <= self.ratio_low < self.ratio_high:
            expected = f"a number from 0 on, below ratio_high={self.ratio_high:g}"
            raise UserError(f"ratio_low={self.ratio_low:g}: expected {expected}")
