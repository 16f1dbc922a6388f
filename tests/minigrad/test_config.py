import math
from dataclasses import dataclass

import pytest

from minigrad.config import RunConfig, bind, check_positive, typed
from minigrad.errors import UserError

RUN = {"experiment": "training", "seed": 0, "device": "cpu", "threads": 1, "deterministic": False, "run_dir": None}


@dataclass
class Config(RunConfig):
    rate: float
    widths: list[int]
    steps: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("rate", self.rate)


VALUES = {**RUN, "rate": 0.5, "widths": [3, 4], "steps": None}


def test_values_become_the_dataclass():
    config = typed(Config, VALUES, "experiment=training")
    assert config == Config("training", 0, "cpu", 1, False, None, 0.5, [3, 4], None)


def test_an_integer_serves_where_a_number_is_asked_for():
    config = typed(Config, {**VALUES, "rate": 3}, "experiment=training")
    assert isinstance(config.rate, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": "fast"}, "rate=fast: expected a number"),
        ({"rate": None}, "rate=null: expected a number"),
        ({"rate": -1}, "rate=-1.0: expected a finite number above 0"),
        ({"rate": 0}, "rate=0.0: expected a finite number above 0"),
        ({"rate": math.inf}, "rate=Infinity: expected a finite number above 0"),
        ({"rate": math.nan}, "rate=NaN: expected a finite number above 0"),
        ({"rate": "???"}, "rate has no value; experiment=training needs a number"),
        ({"steps": 1.5}, "steps=1.5: expected an integer or null"),
        ({"widths": 3}, "widths=3: expected a list of integers such as [64, 32]"),
        ({"widths": ["a"]}, 'widths=["a"]: expected a list of integers such as [64, 32]'),
        ({"seed": None}, "seed=null: expected an integer"),
        ({"seed": -1}, "seed=-1: expected an integer from 0 to 2^32 - 1"),
        ({"seed": 2**32}, "seed=4294967296: expected an integer from 0 to 2^32 - 1"),
        ({"threads": 0}, "threads=0: expected an integer from 1 on"),
        ({"threads": 100000}, "threads=100000: expected 1024 at most"),
        ({"run_dir": ""}, "run_dir=: expected a path, or null for a new directory below runs/"),
        ({"device": [1]}, "device=[1]: expected text"),
        ({"device": "${seed}"}, "device=${seed}: expected a value, not a reference to one"),
        ({"widths": ["${seed}"]}, 'widths=["${seed}"]: expected a value, not a reference to one'),
        ({"deterministic": "often"}, "deterministic=often: expected true or false"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(change, message):
    with pytest.raises(UserError) as caught:
        typed(Config, {**VALUES, **change}, "experiment=training")
    assert str(caught.value) == message


def test_an_unknown_key_is_named_with_the_nearest_and_all_there_are():
    with pytest.raises(UserError) as caught:
        typed(Config, {**VALUES, "width": 3}, "experiment=training")
    assert str(caught.value) == (
        "unknown key 'width'; did you mean 'widths'? "
        "keys of experiment=training: experiment, seed, device, threads, deterministic, run_dir, rate, widths, steps"
    )


def test_a_missing_key_is_named():
    with pytest.raises(UserError, match=r"^steps has no value; experiment=training needs an integer or null$"):
        typed(Config, {key: value for key, value in VALUES.items() if key != "steps"}, "experiment=training")


def scale(values: list[int], *, factor: float, shift: int) -> list[float]:
    return [factor * value + shift for value in values]


TABLE = {"scale": scale}


def test_keyword_only_parameters_are_an_entry_s_options():
    assert bind(TABLE, {"name": "scale", "factor": 2, "shift": 1}, "function")([1, 2]) == [3.0, 5.0]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"name": "scal"}, "function=scal: expected one of scale"),
        ({"name": "os.system", "command": "true"}, "function=os.system: expected one of scale"),
        ({"name": ["scale"]}, 'function=["scale"]: expected one of scale'),
        ({"name": "scale", "factor": "a", "shift": 1}, "function.factor=a: expected a number"),
        ({"name": "scale", "factor": 1}, "function.shift has no value; function=scale needs an integer"),
        (
            {"name": "scale", "factor": 1, "shift": 1, "values": [1]},
            "unknown key 'function.values'; keys of function=scale: function.factor, function.shift",
        ),
    ],
)
def test_a_group_s_node_reaches_nothing_outside_its_table_and_signature(node, message):
    with pytest.raises(UserError) as caught:
        bind(TABLE, node, "function")
    assert str(caught.value) == message
