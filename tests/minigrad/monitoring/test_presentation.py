import math

import pytest
import torch

from minigrad.monitoring.presentation import draw_gain, layer_rows, parameter_rows
from minigrad.monitoring.readings import FLOW, UPDATES, Readings
from minigrad.monitoring.thresholds import Thresholds
from minigrad.monitoring.verdicts import Verdict
from minigrad.tables import markdown, plain


def readings(layers, parameters, steps=3, dead=None):
    """Return readings that are NaN but for what a layer or a parameter is given, {name: {statistic: value}}."""
    flow = torch.full((steps, len(layers), len(FLOW)), math.nan, dtype=torch.float64)
    updates = torch.full((steps, len(parameters), len(UPDATES)), math.nan, dtype=torch.float64)
    for values, given, statistics in ((flow, layers, FLOW), (updates, parameters, UPDATES)):
        for place, measured in enumerate(given.values()):
            for statistic, value in measured.items():
                if statistic in statistics:
                    values[:, place, statistics.index(statistic)] = torch.tensor(value, dtype=torch.float64)
    activations = {name: layer.get("activation", "tanh") for name, layer in layers.items()}
    return Readings(0, activations, flow, dict.fromkeys(parameters, (2, 2)), updates, dead or {})


def cells(table):
    columns, rows = table
    return [dict(zip(columns, row, strict=True)) for row in rows]


def test_a_layer_is_a_row_of_medians_in_three_digits():
    (row,) = cells(
        layer_rows(readings({"a": {"gain": [0.1, 0.123456, 9.0], "saturated": 0.71239, "rms": 0.0}}, {}), [])
    )
    assert row == {
        "layer": "a",
        "activation": "tanh",
        "gain": 0.123,
        "gradient's rms": 0.0,
        "saturated %": 71.2,
        "verdict": "",
    }


def test_a_row_names_all_verdicts_on_it_those_of_which_it_is_not_the_worst_too():
    verdicts = [
        Verdict("vanishing", "", "over depth"),
        Verdict("vanishing", "a", "", also=("b",)),
        Verdict("false zeros", "b", ""),
        Verdict("non-finite", "w", ""),
    ]
    given = readings({"a": {}, "b": {}, "c": {}}, {"w": {}, "v": {}})
    assert [row["verdict"] for row in cells(layer_rows(given, verdicts))] == ["vanishing", "vanishing, false zeros", ""]
    assert [row["verdict"] for row in cells(parameter_rows(given, verdicts))] == ["non-finite", ""]


def test_inactive_units_of_relu_are_not_shown_as_saturated_and_no_verdict_is_named_twice():
    given = readings({"a": {"activation": "relu", "saturated": 0.5, "zeros": 0.5}, "b": {"saturated": 0.25}}, {})
    verdicts = [Verdict("vanishing", "", "", also=("a",)), Verdict("vanishing", "a", "")]
    a, b = cells(layer_rows(given, verdicts))
    assert (a["saturated %"], a["zeros %"], a["verdict"], b["saturated %"]) == ("", 50.0, "vanishing", 25.0)


def test_dead_units_are_shown_in_per_cent_of_relu_layers_alone():
    units = torch.tensor([True, False, False, False])
    given = readings({"a": {"activation": "relu"}, "b": {"gain": 1.0}}, {}, dead={"a": units})
    assert [row["dead %"] for row in cells(layer_rows(given, []))] == [25.0, ""]


def test_a_column_without_any_number_is_left_out():
    columns, _ = layer_rows(readings({"a": {"gain": 1.0, "mean": 0.5}}, {}), [])
    assert columns == ["layer", "activation", "gain", "output's mean", "verdict"]


def test_a_parameter_is_a_row_of_norms_ratio_and_cosine():
    measured = {
        "gradient_norm": 1.5,
        "parameter_norm": 2.0,
        "update_ratio": 1.23456e-3,
        "gradient_cosine": [math.nan, 0.5, 0.5],
    }
    (row,) = cells(parameter_rows(readings({}, {"0.weight": measured}), []))
    assert row == {
        "parameter": "0.weight",
        "gradient's norm": 1.5,
        "norm": 2.0,
        "update ratio": 0.00123,
        "cosine": 0.5,
        "verdict": "",
    }


@pytest.mark.parametrize("rows", [layer_rows, parameter_rows])
@pytest.mark.parametrize("form", [plain, markdown])
@pytest.mark.parametrize("names", [(), ("a", "b")])
@pytest.mark.parametrize("steps", [0, 1])
def test_tables_without_layers_steps_or_numbers_can_be_shown(rows, form, names, steps):
    nothing = {name: {} for name in names}
    given = readings(nothing, nothing, steps=steps)
    text = form(*rows(given, []))
    assert len(text.splitlines()) == 2 + len(names)
    assert "nan" not in text


def drawn(gains, rms=None, layers=None, steps=None, **options):
    """Draw, render, and return the two panels and the colour bar."""
    gains = torch.as_tensor(gains, dtype=torch.float64)
    rms = torch.ones_like(gains) if rms is None else torch.as_tensor(rms, dtype=torch.float64)
    layers = [str(i) for i in range(gains.shape[1])] if layers is None else layers
    figure = draw_gain(list(range(len(gains))) if steps is None else steps, gains, rms, layers, **options)
    figure.canvas.draw()
    return figure.axes


@pytest.mark.parametrize(("times", "layers"), [(1, 1), (1, 5), (7, 1), (500, 100)])
def test_any_number_of_times_and_layers_can_be_drawn(times, layers):
    heat, *_ = drawn(torch.full((times, layers), 0.5))
    (mesh,) = heat.collections
    assert mesh.get_array().shape == (layers, times)
    names = [label.get_text() for label in heat.get_yticklabels()]
    assert names[0] == "0"
    assert min(layers, 10) <= len(names) <= 16


def test_colours_are_gains_with_the_input_at_the_bottom_and_what_is_below_the_scale_at_its_end():
    heat, *_ = drawn([[0.5, 0.25], [1.0, 0.0]])
    (mesh,) = heat.collections
    assert mesh.get_array().tolist() == [[0.5, 1.0], [0.25, 0.001]]
    assert heat.get_ylim() == (-0.5, 1.5)


def test_the_heat_map_reads_in_greyscale():
    heat, *_ = drawn([[1.0]])
    (mesh,) = heat.collections
    colors = torch.tensor(mesh.to_rgba([1e-3, 1e-2, 1e-1, 1.0]))
    shades = colors[:, :3] @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    assert (shades.diff() > 0.1).all()


def test_cells_without_a_number_show_the_hatched_ground():
    heat, *_ = drawn([[0.5, math.nan], [0.5, 0.5]])
    (mesh,) = heat.collections
    assert mesh.get_array().mask.tolist() == [[False, False], [True, False]]
    assert mesh.get_cmap()(math.nan)[3] == 0  # transparent
    assert heat.patch.get_hatch() == "///"


def test_columns_end_halfway_between_their_steps():
    heat, *_ = drawn(torch.ones(3, 1), steps=[0, 10, 40])
    (mesh,) = heat.collections
    assert mesh.get_coordinates()[0, :, 0].tolist() == [-5, 5, 25, 55]
    heat, *_ = drawn(torch.ones(1, 1), steps=[8])
    assert heat.collections[0].get_coordinates()[0, :, 0].tolist() == [7.5, 8.5]


def test_profiles_are_relative_to_the_last_layer_at_the_first_the_last_and_some_times_between():
    rms = torch.tensor([0.1, 1.0]) * torch.arange(1, 11)[:, None]
    _, profile, _ = drawn(torch.ones(10, 2), rms)
    curves = profile.lines[:4]
    assert [curve.get_label() for curve in curves] == ["step 0", "step 3", "step 6", "step 9"]
    for curve in curves:
        assert curve.get_xdata() == pytest.approx([0.1, 1.0])
        assert list(curve.get_ydata()) == [0, 1]
    assert curves[-1].get_color() == "black"


def test_lines_stand_where_the_verdicts_on_depth_begin():
    _, profile, _ = drawn(torch.ones(1, 2), thresholds=Thresholds(depth_vanishing=0.01, exploding=100))
    assert [line.get_xdata()[0] for line in profile.lines[1:]] == [0.01, 100]
    _, profile, _ = drawn(torch.ones(1, 2), thresholds=Thresholds(depth_vanishing=0, exploding=math.inf))
    assert len(profile.lines) == 1


def test_a_line_stands_in_the_colour_bar_where_the_gradient_vanishes():
    _, _, bar = drawn(torch.ones(1, 2), thresholds=Thresholds(vanishing=0.05))
    assert bar.get_xlabel() == "flow gain; below 0.05 (line) the gradient vanishes; hatched: no number"
    with_line = len(bar.lines)
    _, _, bar = drawn(torch.ones(1, 2), thresholds=Thresholds(vanishing=0))
    assert bar.get_xlabel() == "flow gain; hatched: no number"
    assert len(bar.lines) == with_line - 1


@pytest.mark.parametrize(
    ("norms", "is_drawn"),
    [
        ([[0.0, 1.0]], True),
        ([[math.nan, 1.0]], True),
        ([[math.inf, 1.0]], True),
        ([[0.0, 0.0]], False),
        ([[1.0, 0.0]], False),
        ([[1.0, math.nan]], False),
    ],
)
def test_sizes_that_have_no_ratio_are_gaps_and_a_time_without_any_is_left_out(norms, is_drawn):
    _, profile, _ = drawn([[math.nan, math.nan]], norms)
    curves = [line for line in profile.lines if line.get_label().startswith("step")]
    assert len(curves) == is_drawn
    assert all(math.isnan(curve.get_xdata()[0]) and curve.get_xdata()[1] == 1 for curve in curves)


def test_a_long_name_is_shortened_to_its_end():
    name = "transformer.encoder.layers.10.mlp.activation"
    heat, *_ = drawn([[0.5]], layers=[name])
    (label,) = heat.get_yticklabels()
    assert label.get_text() == "…ayers.10.mlp.activation"
