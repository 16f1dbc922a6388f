import math
from dataclasses import fields

import pytest
import torch

from minigrad.errors import UserError
from minigrad.monitoring.readings import FLOW, UPDATES, Readings
from minigrad.monitoring.thresholds import Thresholds
from minigrad.monitoring.verdicts import flow_medians, judge, median_update_ratio, update_medians

HEALTHY = {
    "sigmoid": {"gain": 0.22, "saturated": 0.02, "false_zeros": 0.0},
    "tanh": {"gain": 0.8, "saturated": 0.05, "false_zeros": 0.0},
    "relu": {"gain": 0.7, "saturated": 0.5},
}
STEPS = 5
FIRST_STEP = 100


def readings(*activations, steps=STEPS, weights=2, dead=None, outputs=(), first_step=FIRST_STEP, **changes):
    """Return healthy readings of layers "0", "1", ... and of parameters "0.weight", "0.bias", ..., changed.

    `layer_1={"gain": 0.5}` and `parameter_0_weight={"update_ratio": 1.0}` change a statistic, in all steps or, with a
    list, step by step.
    """
    layers = {str(i): activation for i, activation in enumerate(activations)}
    shapes = {f"{i}.{kind}": shape for i in range(weights) for kind, shape in (("weight", (4, 3)), ("bias", (4,)))}
    flow = torch.full((steps, len(layers), len(FLOW)), math.nan, dtype=torch.float64)
    updates = torch.full((steps, len(shapes), len(UPDATES)), math.nan, dtype=torch.float64)
    everywhere = {"norm": 1e-3, "nonfinite": 0.0, "zeros": 0.0}
    update = {"gradient_norm": 1.0, "parameter_norm": 2.0, "update_norm": 2e-3, "update_ratio": 1e-3}
    for values, names, statistics, prefix, healthy in (
        (flow, layers, FLOW, "layer", lambda name: everywhere | HEALTHY[layers[name]]),
        (updates, shapes, UPDATES, "parameter", lambda name: update),
    ):
        for place, name in enumerate(names):
            changed = changes.pop(f"{prefix}_{name.replace('.', '_')}", {})
            for statistic, value in (healthy(name) | changed).items():
                values[:, place, statistics.index(statistic)] = torch.tensor(value, dtype=torch.float64)
    assert not changes
    return Readings(first_step, layers, flow, shapes, updates, dead or {}, outputs)


def judged(given, highest_ratio=math.nan, is_early=False, began_ill=False, **thresholds):
    return judge(given, Thresholds(**thresholds), highest_ratio, is_early=is_early, began_ill=began_ill)


def kinds(*arguments, **options):
    return [verdict.kind for verdict in judged(*arguments, **options)]


def dead_units(fraction, units=100):
    return torch.arange(units) < fraction * units


@pytest.mark.parametrize("activation", HEALTHY)
def test_healthy_layers_get_no_word(activation):
    assert judged(readings(activation, activation, activation)) == []


def test_no_steps_no_layers_and_no_parameters_are_no_evidence():
    assert judged(readings("tanh", "relu", steps=0)) == []
    assert judged(readings(weights=0), 0.0) == []


def test_readings_without_numbers_are_no_evidence():
    given = readings("tanh", "relu", "sigmoid")
    given.flow.fill_(math.nan)
    given.updates.fill_(math.nan)
    assert judged(given, 0.0) == []


def test_a_verdict_reads_as_its_message():
    (verdict,) = judged(readings("tanh", layer_0={"gain": 0.01}))
    assert str(verdict) == verdict.message


# Vanishing, in a layer.


def test_a_vanishing_layer_is_told_with_its_factor_and_its_saturation():
    (verdict,) = judged(readings("tanh", "tanh", "sigmoid", layer_2={"gain": 1 / 14, "saturated": 0.71}))
    assert (verdict.kind, verdict.where, verdict.also) == ("vanishing", "2", ())
    assert verdict.message == (
        "layer 2 (sigmoid): vanishing: the gradient shrinks 14-fold here; 71 % of its units are saturated. "
        "Try tanh, a smaller initial scale or a smaller learning rate."
    )


def test_vanishing_without_saturation_does_not_speak_of_it():
    (verdict,) = judged(readings("sigmoid", layer_0={"gain": 0.09, "saturated": 0.5}))
    assert "the gradient shrinks 11-fold here. Try" in verdict.message


def test_vanishing_in_relu_speaks_of_inactive_units():
    (verdict,) = judged(readings("relu", layer_0={"gain": 0.05, "saturated": 0.996}))
    assert "shrinks 20-fold here; 99.6 % of its units are inactive. Try a smaller learning rate" in verdict.message


def test_a_layer_that_passes_nothing_on_shrinks_the_gradient_to_0():
    (verdict,) = judged(readings("tanh", layer_0={"gain": 0.0}))
    assert "the gradient shrinks to 0 here." in verdict.message


def test_a_gain_at_the_threshold_is_not_vanishing_and_one_below_it_is():
    assert kinds(readings("tanh", layer_0={"gain": 0.1})) == []
    assert kinds(readings("tanh", layer_0={"gain": math.nextafter(0.1, 0)})) == ["vanishing"]
    assert kinds(readings("tanh", layer_0={"gain": 0.4}), vanishing=0.5) == ["vanishing"]


def test_the_median_over_the_steps_decides_and_steps_without_a_number_do_not_count():
    assert kinds(readings("tanh", layer_0={"gain": [0.01, 0.01, 0.5, 0.5, 0.5]})) == []
    assert kinds(readings("tanh", layer_0={"gain": [0.01, 0.01, 0.01, 0.5, 0.5]})) == ["vanishing"]
    assert kinds(readings("tanh", layer_0={"gain": [0.01, math.nan, math.nan, math.nan, math.nan]})) == ["vanishing"]


def test_many_vanishing_layers_make_one_verdict_on_the_worst_that_names_the_others():
    given = readings(*["sigmoid"] * 6, **{f"layer_{i}": {"gain": 0.05, "saturated": 0.9} for i in range(6)})
    given.flow[:, 3, FLOW.index("gain")] = 0.04
    (verdict,) = judged(given)
    assert (verdict.where, verdict.also) == ("3", ("0", "1", "2", "4", "5"))
    assert "shrinks 25-fold here; 90 % of its units are saturated. Likewise in layers 0, 1, 2 and 2 more. Try" in (
        verdict.message
    )


def test_one_other_layer_is_named_in_the_singular():
    (verdict,) = judged(readings("tanh", "tanh", layer_0={"gain": 0.01}, layer_1={"gain": 0.02}))
    assert ". Likewise in layer 1. Try" in verdict.message


# Vanishing and exploding, over depth.


def depth(ratio, layers=4, activation="tanh"):
    return readings(*[activation] * layers, layer_0={"norm": 0.5 * ratio}, **{f"layer_{layers - 1}": {"norm": 0.5}})


def test_vanishing_over_depth_names_both_ends_the_factor_and_its_geometric_mean():
    (verdict,) = judged(depth(1e-5, layers=6))
    assert (verdict.kind, verdict.where) == ("vanishing", "")
    assert (
        "the network: vanishing: from layer 5 back to layer 0 the gradient shrinks 100,000-fold, 10-fold per layer"
        in (verdict.message)
    )
    assert "sigmoid" not in verdict.message


def test_exploding_names_both_ends_the_factor_and_its_geometric_mean():
    (verdict,) = judged(depth(6.4e4, layers=3, activation="relu"))
    assert (verdict.kind, verdict.where) == ("exploding", "")
    assert "from layer 2 back to layer 0 the gradient grows 64,000-fold, 250-fold per layer on average. Try" in (
        verdict.message
    )


def test_large_factors_are_told_as_powers_of_ten():
    (verdict,) = judged(depth(3e-15, layers=12, activation="sigmoid"))
    assert "shrinks 10^15-fold, 21-fold per layer on average" in verdict.message  # 3e-15 ** (1 / 11) = 1 / 20.9
    assert "instead of sigmoid" in verdict.message


@pytest.mark.parametrize(
    ("ratio", "found"),
    [
        (1e-3, []),
        (math.nextafter(1e-3, 0), ["vanishing"]),
        (1e3, []),
        (math.nextafter(1e3, 2e3), ["exploding"]),
        (0.0, ["vanishing"]),
    ],
)
def test_depth_is_judged_beyond_the_thresholds_alone(ratio, found):
    given = readings("tanh", "tanh", layer_0={"norm": ratio}, layer_1={"norm": 1.0})
    assert kinds(given) == found


def test_a_gradient_that_ends_in_depth_shrinks_to_0():
    assert "back to layer 0 the gradient shrinks to 0. Try" in judged(depth(0.0))[0].message


def test_the_ratio_over_depth_is_taken_step_by_step():
    sizes = [1e-9, 1e-6, 1e-3, 1.0, 1e3]  # the gradient of a run that converges or jumps, not its flow
    assert kinds(readings("tanh", "tanh", layer_0={"norm": sizes}, layer_1={"norm": sizes})) == []
    assert kinds(readings("tanh", "tanh", layer_0={"norm": sizes[::-1]}, layer_1={"norm": sizes})) == []


@pytest.mark.parametrize(("first", "last"), [(1.0, 0.0), (0.0, 0.0), (1.0, math.inf), (math.inf, 1.0)])
def test_a_ratio_without_a_meaning_is_no_evidence(first, last):
    assert kinds(readings("tanh", "tanh", layer_0={"norm": first}, layer_1={"norm": last})) == []


def test_depth_is_measured_between_layers_that_have_numbers():
    nothing = {"norm": math.nan}
    given = readings(*["tanh"] * 5, layer_0=nothing, layer_1={"norm": 1e-6}, layer_3={"norm": 1.0}, layer_4=nothing)
    assert (
        "from layer 3 back to layer 1 the gradient shrinks 10^6-fold, 1,000-fold per layer" in judged(given)[0].message
    )


def test_layers_whose_gradient_is_too_small_or_too_large_suffer_from_it():
    sizes = [10.0 ** (i - 5) for i in range(6)]
    for activation, ends in (("tanh", sizes), ("relu", sizes[::-1])):
        layers = {f"layer_{i}": {"norm": size} for i, size in enumerate(ends)}
        (verdict,) = judged(readings(*[activation] * 6, **layers))
        assert (verdict.where, verdict.also) == ("", ("0", "1"))


def test_a_deep_saturated_network_is_told_in_two_verdicts():
    layers = {f"layer_{i}": {"gain": 0.05, "saturated": 0.9, "norm": 10.0 ** (i - 12)} for i in range(12)}
    network, layer = judged(readings(*["sigmoid"] * 12, **layers))
    assert (network.kind, network.where, layer.kind, len(layer.also)) == ("vanishing", "", "vanishing", 11)


# Saturated and dead.


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_a_layer_whose_units_are_mostly_saturated_is_told(activation):
    (verdict,) = judged(readings("relu", activation, layer_1={"saturated": 0.62}))
    assert (verdict.kind, verdict.where) == ("saturated", "1")
    assert f"layer 1 ({activation}): saturated: 62 % of its units are saturated" in verdict.message
    assert kinds(readings(activation, layer_0={"saturated": 0.5})) == []


def test_inactive_units_of_relu_are_not_saturated():
    assert kinds(readings("relu", layer_0={"saturated": 0.9})) == []


def test_saturation_that_a_vanishing_layer_has_said_is_not_said_again():
    vanishing, saturated = judged(
        readings("tanh", "tanh", layer_0={"gain": 0.05, "saturated": 0.9}, layer_1={"saturated": 0.8})
    )
    assert (vanishing.kind, vanishing.where) == ("vanishing", "0")
    assert (saturated.kind, saturated.where, saturated.also) == ("saturated", "1", ())


def test_dead_units_are_counted_as_those_that_never_fired():
    (verdict,) = judged(readings("relu", "relu", dead={"0": dead_units(0.1), "1": dead_units(0.4)}))
    assert (verdict.kind, verdict.where) == ("dead", "1")
    assert "layer 1 (relu): dead: 40 % of its 100 units fire on no input" in verdict.message
    assert kinds(readings("relu", dead={"0": dead_units(0.25)})) == []


def test_units_that_died_are_not_told_as_vanishing_too():
    assert kinds(readings("relu", layer_0={"gain": 0.0}, dead={"0": dead_units(1.0)})) == ["dead"]


def test_before_a_window_is_full_nothing_is_dead():
    assert kinds(readings("relu", dead={})) == []


# False zeros.


def test_false_zeros_are_told_with_their_share():
    (verdict,) = judged(readings("tanh", "sigmoid", layer_1={"false_zeros": 0.034}))
    assert (verdict.kind, verdict.where) == ("false zeros", "1")
    assert "3.4 % of the gradient is 0 by rounding alone" in verdict.message
    assert kinds(readings("tanh", layer_0={"false_zeros": 0.01})) == []


def test_false_zeros_of_saturated_units_are_not_blamed_on_the_dtype():
    saturated = {"saturated": 0.9, "false_zeros": 0.8}
    assert kinds(readings("tanh", layer_0=saturated)) == ["saturated"]
    assert kinds(readings("tanh", layer_0=saturated | {"gain": 0.01})) == ["vanishing"]
    assert kinds(readings("tanh", "tanh", layer_0=saturated, layer_1={"false_zeros": 0.1})) == [
        "saturated",
        "false zeros",
    ]


# An output layer.


@pytest.mark.parametrize("change", [{"saturated": 0.9}, {"gain": 0.01, "saturated": 0.9}, {"false_zeros": 0.1}])
def test_an_output_layer_that_is_sure_is_not_at_fault(change):
    given = {"layer_1": change}
    assert kinds(readings("tanh", "sigmoid", **given)) != []
    assert kinds(readings("tanh", "sigmoid", outputs=("1",), **given)) == []


def test_dead_units_and_the_gradient_of_an_output_layer_count():
    assert kinds(readings("relu", outputs=("0",), dead={"0": dead_units(0.4)})) == ["dead"]
    assert kinds(readings("tanh", "tanh", layer_0={"norm": 1e-9}, outputs=("1",))) == ["vanishing"]


# The learning rate.


def test_the_update_ratio_is_the_median_over_the_weights_of_the_median_over_the_steps():
    given = readings(
        weights=3,
        parameter_0_weight={"update_ratio": [1.0, 2.0, 3.0, 400.0, 500.0]},
        parameter_1_weight={"update_ratio": [math.nan, 7.0, math.nan, math.nan, math.nan]},
        parameter_2_weight={"update_ratio": 0.0},
        parameter_0_bias={"update_ratio": math.inf},
        parameter_1_bias={"update_ratio": math.inf},
        parameter_2_bias={"update_ratio": math.inf},
    )
    assert median_update_ratio(given) == 3


def test_without_weights_there_is_no_update_ratio():
    assert math.isnan(median_update_ratio(readings(weights=0)))
    assert math.isnan(median_update_ratio(readings(steps=0)))
    assert math.isnan(
        median_update_ratio(Readings(0, {}, torch.empty(1, 0, len(FLOW)), {"b": (3,)}, torch.ones(1, 1, 5), {}))
    )


def weights(ratio):
    return {f"parameter_{i}_weight": {"update_ratio": ratio} for i in range(2)}


def test_large_updates_are_told_as_too_large_a_learning_rate():
    (verdict,) = judged(readings("tanh", **weights(0.314)))
    assert (verdict.kind, verdict.where) == ("learning rate too large", "")
    assert "an update has 0.31 times the norm of the weights; around 1e-3 is usual. Try a smaller" in verdict.message
    assert kinds(readings("tanh", **weights(0.1))) == []


ILL = {
    "non-finite": {"layer_0": {"nonfinite": 0.5}},
    "vanishing": {"layer_0": {"gain": 0.01}},
    "exploding": {"layer_0": {"norm": 1e3}},
    "saturated": {"layer_0": {"saturated": 0.9}},
    "dead": {"dead": {"1": dead_units(0.5)}},
}


@pytest.mark.parametrize("is_early", [False, True])
@pytest.mark.parametrize("kind", ILL)
def test_a_large_update_of_the_past_explains_what_is_wrong_with_the_layers(kind, is_early):
    given = readings("tanh", "relu", **ILL[kind])
    assert [verdict.kind for verdict in judged(given, 0.1, is_early)] == [kind]
    found = {verdict.kind: str(verdict) for verdict in judged(given, 9.8, is_early)}
    assert found.keys() == {kind, "learning rate too large"}
    assert "an update has had 9.8 times the norm of the weights" in found["learning rate too large"]
    assert "Try a smaller learning rate" in found[kind] or kind == "non-finite"
    assert next(iter(found)) == ("non-finite" if kind == "non-finite" else "learning rate too large")


def test_a_large_update_of_the_past_does_not_explain_what_is_the_dtypes_fault():
    given = {"layer_0": {"false_zeros": 0.5}}
    assert [verdict.kind for verdict in judged(readings("tanh", "tanh", **given), 9.8)] == ["false zeros"]
    found = judged(readings("tanh", "tanh", layer_1={"saturated": 0.9}, **given), 9.8)
    assert [verdict.kind for verdict in found] == ["learning rate too large", "saturated", "false zeros"]
    assert "Try float32 or a loss scaled up" in str(found[-1])


def test_no_learning_rate_explains_what_was_wrong_before_the_first_update():
    given = readings("tanh", layer_0={"saturated": 0.9})
    assert [verdict.kind for verdict in judged(given, 9.8, began_ill=True)] == ["saturated"]
    given = readings("tanh", layer_0={"saturated": 0.9}, **weights(9.8))
    network, layer = judged(given, began_ill=True)
    assert (network.kind, layer.kind) == ("learning rate too large", "saturated")
    assert "Try a smaller initial scale or a smaller learning rate." in str(layer)


def test_a_large_update_of_the_past_that_did_no_harm_is_forgotten():
    assert judged(readings("tanh"), 9.8) == []


def test_early_in_a_run_the_size_of_the_updates_alone_is_no_fault():
    for ratio in (0.3, 1e-7):
        assert len(judged(readings("tanh", **weights(ratio)))) == 1
        assert judged(readings("tanh", **weights(ratio)), is_early=True) == []


def test_updates_that_were_always_small_are_told_as_too_small_a_learning_rate():
    (verdict,) = judged(readings("tanh", **weights(2e-7)), 3.4e-6)
    assert (verdict.kind, verdict.where) == ("learning rate too small", "")
    assert "no update had more than 3.4e-06 times the norm of the weights" in verdict.message
    assert "Try a larger" in verdict.message


@pytest.mark.parametrize("highest", [1e-5, 1e-3])
def test_small_updates_of_a_run_that_had_larger_ones_are_no_fault(highest):
    assert kinds(readings("tanh", **weights(1e-9)), highest) == []


@pytest.mark.parametrize("highest", [math.nan, 0.0, 1e-9])
def test_the_highest_ratio_is_at_least_that_of_the_readings(highest):
    assert kinds(readings("tanh", **weights(1e-5)), highest) == []
    assert kinds(readings("tanh", **weights(math.nextafter(1e-5, 0))), highest) == ["learning rate too small"]


def test_small_updates_are_not_blamed_on_the_learning_rate_where_something_else_makes_them_small():
    given = readings("tanh", "tanh", layer_0={"norm": 1e-9}, layer_1={"norm": 1.0}, **weights(1e-9))
    assert kinds(given) == ["vanishing"]


# Non-finite.


def test_what_is_not_finite_is_told_at_its_first_step_in_the_layer_nearest_to_the_output():
    given = readings("tanh", "tanh", "tanh", layer_0={"nonfinite": [0.0, 0.0, 1.0, 1.0, 1.0]})
    given.flow[2:, 1, FLOW.index("nonfinite")] = 0.125
    given.flow[3:, 2, FLOW.index("nonfinite")] = 1.0
    (verdict,) = judged(given)
    assert (verdict.kind, verdict.where) == ("non-finite", "1")
    assert (
        "layer 1 (tanh): non-finite: 12 % of the gradient that leaves it is infinite or NaN at step 102"
        in verdict.message
    )


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_a_parameter_whose_gradient_is_not_finite_is_told(norm):
    given = readings("tanh", parameter_0_weight={"gradient_norm": [1.0, 1.0, 1.0, 1.0, norm]})
    (verdict,) = judged(given)
    assert (verdict.kind, verdict.where) == ("non-finite", "0.weight")
    assert f"parameter 0.weight: non-finite: the norm of its gradient is {norm:g} at step 104" in verdict.message


def test_a_layer_comes_before_the_parameters_of_the_same_step_and_after_those_of_earlier_ones():
    bad = {"gradient_norm": [1.0, math.inf, 1.0, 1.0, 1.0]}
    late, same = [0.0, 0.0, 0.5, 0.0, 0.0], [0.0, 0.5, 0.0, 0.0, 0.0]
    assert judged(readings("tanh", layer_0={"nonfinite": late}, parameter_1_bias=bad))[0].where == "1.bias"
    assert judged(readings("tanh", layer_0={"nonfinite": same}, parameter_1_bias=bad))[0].where == "0"


def test_a_parameter_without_a_gradient_is_not_non_finite():
    nothing = dict.fromkeys(UPDATES, math.nan)
    assert kinds(readings("tanh", parameter_0_weight=nothing)) == []


def test_a_gradient_that_is_not_finite_hides_nothing_else():
    given = readings("tanh", "relu", layer_0={"nonfinite": [0.0, 0.0, 0.0, 0.0, 0.1], "gain": 0.01})
    assert kinds(given) == ["non-finite", "vanishing"]


def test_before_the_first_update_no_learning_rate_is_to_blame():
    given = readings("tanh", first_step=0, layer_0={"nonfinite": 1.0})
    (verdict,) = judged(given)
    assert "at step 0, first on the way back from the loss. Try finite inputs, smaller initial values" in str(verdict)


def skipped(*bad):
    """Return readings in which these steps are not finite and change nothing."""
    nonfinite, update = (
        [value if i in bad else other for i in range(STEPS)] for value, other in ((1.0, 0.0), (0.0, 1e-3))
    )
    changes = {f"parameter_{i}_{kind}": {"update_norm": update} for i in range(2) for kind in ("weight", "bias")}
    return readings("tanh", layer_0={"nonfinite": nonfinite}, **changes)


def test_steps_that_were_skipped_are_no_fault_once_others_follow():
    assert kinds(skipped(0, 1, 3)) == []
    (verdict,) = judged(skipped(0, 3, 4))
    assert "at step 103, first on the way" in str(verdict)
    given = skipped(0, 1)
    given.updates[:, :, UPDATES.index("update_norm")] = math.nan  # nothing is known of what the update did
    assert kinds(given) == ["non-finite"]


# Medians and thresholds.


def test_medians_are_by_name_and_nan_where_there_is_nothing():
    given = readings("tanh", layer_0={"gain": [0.1, 0.2, 0.3, 0.4, math.nan]})
    assert flow_medians(given)["0"]["gain"] == 0.2  # torch's median: the lower of the two in the middle
    assert math.isnan(flow_medians(given)["0"]["largest"])
    assert update_medians(given)["1.bias"]["parameter_norm"] == 2.0
    assert math.isnan(update_medians(readings(steps=0))["1.bias"]["parameter_norm"])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(
            (name, value, "from 0 to 1")
            for name in ("vanishing", "saturated", "dead")
            for value in (-0.1, 1.1, math.nan)
        ),
        ("depth_vanishing", 2.0, "from 0 to 1"),
        ("false_zeros", 1.5, "from 0 to 1"),
        ("share", 0.0, "between 0 and 1"),
        ("share", 1.0, "between 0 and 1"),
        ("exploding", 0.5, "from 1 on"),
        ("ratio_low", -1.0, "from 0 on, below ratio_high=0.1"),
        ("ratio_low", 0.1, "below ratio_high=0.1"),
    ],
)
def test_a_threshold_out_of_its_range_is_refused(name, value, expected):
    with pytest.raises(UserError) as caught:
        Thresholds(**{name: value})
    assert str(caught.value).startswith(f"{name}={value:g}: expected a number ")
    assert expected in str(caught.value)


def test_a_rate_that_is_too_large_must_lie_above_one_that_is_too_small():
    with pytest.raises(UserError, match="ratio_low=1e-05: expected a number from 0 on, below ratio_high=nan"):
        Thresholds(ratio_high=math.nan)


def test_the_end_of_a_range_turns_its_verdict_off():
    off = {"vanishing": 0.0, "depth_vanishing": 0.0, "exploding": math.inf, "saturated": 1.0, "dead": 1.0}
    off |= {"false_zeros": 1.0, "ratio_high": math.inf, "ratio_low": 0.0}
    assert off.keys() | {"share"} == {field.name for field in fields(Thresholds)}
    worst = {"gain": 0.0, "saturated": 1.0, "false_zeros": 1.0}
    for first, last in ((0.0, 1.0), (1e300, 1.0)):
        given = readings(
            "relu",
            "tanh",
            layer_0={"gain": 0.0, "norm": first},
            layer_1=worst | {"norm": last},
            dead={"0": dead_units(1.0)},
            **weights(1e6 if last == first else 0.0),
        )
        assert kinds(given) != []
        assert kinds(given, **off) == []
    assert kinds(readings(**weights(1e6)), **off) == []
