"""The runs of a sweep compared: known orders, tables and figures."""

import csv
import io
import itertools
import math

import pytest

from minigrad import tables
from minigrad.leaderboard import Entry, as_csv, best_first, draw, table


def entry(name="0", status="finished", overrides=None, **summary):
    """Return a run; `test_loss` stands for test/loss."""
    return Entry(
        name, overrides or {}, status, {key.replace("test_", "test/"): value for key, value in summary.items()}
    )


def sweep(losses, **keys):
    """Return finished runs of every combination of values, with the losses in turn; None for one that failed."""
    combinations = [dict(zip(keys, values, strict=True)) for values in itertools.product(*keys.values())]
    return [
        Entry(str(i), overrides, "failed", {}) if loss is None else entry(str(i), overrides=overrides, test_loss=loss)
        for i, (overrides, loss) in enumerate(zip(combinations, itertools.cycle(losses), strict=False))
    ]


def names(entries):
    return [run.name for run in entries]


def labels(axes):
    return [tick.get_text() for tick in axes.get_xticklabels()]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def lines(axes):
    """Return the points of every line that joins runs, in the panel's order."""
    return [line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() != "None"]


def crosses(axes):
    return [x for line in axes.lines if line.get_marker() == "x" for x in line.get_xdata()]


def test_the_lowest_finite_loss_is_first_and_what_did_not_finish_last():
    runs = [
        entry("failed", "failed", test_loss=0.0),
        entry("worse", test_loss=0.5),
        entry("another experiment"),
        entry("refused", "refused"),
        entry("null", test_loss=None),
        entry("best", test_loss=-2.0),
        entry("NaN", test_loss=math.nan),
        entry("zero", test_loss=0),
        entry("interrupted", "interrupted", test_loss=-9.0),
        entry("running", "running"),
    ]
    assert names(best_first(runs)) == [
        *("best", "zero", "worse", "another experiment", "null", "NaN"),
        *("failed", "refused", "interrupted", "running"),
    ]


def test_equal_losses_stay_in_order():
    assert names(best_first([entry(name, test_loss=1.0) for name in "cab"])) == ["c", "a", "b"]


def test_a_table_has_the_keys_that_differ_the_metrics_and_what_a_run_took():
    runs = [
        entry(
            str(i),
            overrides={"objective": "digits", "rule": rule, "learning_rate": "1e-1"},
            **{"train/loss": 0.25, "gradient_norm": 3.0, "test/accuracy": 0.75, "seconds": 1.5, "steps": 40},
            test_loss=loss,
        )
        for i, (rule, loss) in enumerate([("adam", 0.5), ("momentum", 0.125)])
    ]
    columns, rows = table(runs)
    assert columns == ["rule", "test/loss", "test/accuracy", "steps", "seconds"]
    assert rows == [["momentum", 0.125, 0.75, 40, 1.5], ["adam", 0.5, 0.75, 40, 1.5]]


def test_a_key_that_some_runs_lack_differs_and_leaves_a_gap():
    runs = [
        entry("0", overrides={"seed": "1", "rule": "adam"}, test_loss=2.0),
        entry(
            "1", overrides={"seed": "1", "rule": "adam", "rule.beta1": "0.5"}, distance_to_minimum=1.0, test_loss=1.0
        ),
    ]
    columns, rows = table(runs)
    assert columns == ["rule.beta1", "test/loss", "distance_to_minimum"]
    assert rows == [["0.5", 1.0, 1.0], ["", 2.0, ""]]


def test_keys_are_in_the_order_in_which_they_appear():
    runs = [
        entry("0", overrides={"seed": "0", "rule": "adam"}, test_loss=2.0),
        entry("1", overrides={"rule": "momentum", "seed": "1"}, test_loss=1.0),
    ]
    assert table(runs)[0][:2] == ["seed", "rule"]


def test_the_status_is_shown_only_if_not_all_runs_finished():
    runs = [entry("0", test_loss=1.0), entry("1", "failed")]
    assert table(runs) == (["test/loss", "status"], [[1.0, "finished"], ["", "failed"]])
    assert table(runs[:1]) == (["test/loss"], [[1.0]])


def test_verdicts_are_shown_if_any_run_has_some():
    runs = [
        entry("0", test_loss=1.0, verdicts=["vanishing", "dead", "vanishing"]),
        entry("1", test_loss=2.0, verdicts=[]),
        entry("2", test_loss=3.0),
    ]
    assert table(runs) == (["test/loss", "verdicts"], [[1.0, "vanishing, dead"], [2.0, ""], [3.0, ""]])
    assert table(runs[1:])[0] == ["test/loss"]


def test_steps_that_were_swept_and_steps_that_were_made_have_a_column_each():
    runs = [entry(steps, overrides={"steps": steps}, steps=7, test_loss=1.0) for steps in ("9", "5")]
    assert table(runs) == (["steps", "test/loss", "steps made"], [["9", 1.0, 7], ["5", 1.0, 7]])
    assert as_csv(runs).splitlines()[0] == "name,steps,test/loss,steps made,status,error"


@pytest.mark.parametrize("runs", [[], [entry()], [entry("0", "running"), entry("1", "refused")]])
def test_runs_without_anything_to_compare_make_a_table_and_no_figure(runs):
    columns, rows = table(runs)
    assert len(rows) == len(runs)
    assert columns == (["status"] if len(runs) == 2 else [])
    assert tables.plain(columns, rows).count("\n") == len(runs) + 1
    assert len(as_csv(runs).splitlines()) == len(runs) + 1
    assert draw(runs) is None


def test_csv_has_everything_with_all_digits():
    runs = [
        entry(
            "b", "failed", {"rule": "adam", "note": "x"}, error='RunFailed: "loss", is NaN\r\nat step 3', seconds=0.1
        ),
        entry("a", overrides={"rule": "adam", "note": "a,\n1"}, test_loss=1 / 3, **{"train/loss": 0.1 + 0.2}),
    ]
    columns, *rows = csv.reader(io.StringIO(as_csv(runs), newline=""))
    assert columns == ["name", "rule", "note", "train/loss", "test/loss", "seconds", "status", "error"]
    assert rows == [
        ["a", "adam", "a,\n1", "0.30000000000000004", "0.3333333333333333", "", "finished", ""],
        ["b", "adam", "x", "", "", "0.1", "failed", 'RunFailed: "loss", is NaN\r\nat step 3'],
    ]


def test_the_csv_is_in_the_order_of_the_table():
    runs = sweep([3.0, None, 1.0, 2.0], seed=["0", "1", "2", "3"])
    rows = csv.DictReader(io.StringIO(as_csv(runs), newline=""))
    assert [row["seed"] for row in rows] == [row[0] for row in table(runs)[1]] == ["2", "3", "0", "1"]


@pytest.mark.parametrize(
    "runs",
    [
        sweep([1.0], seed=["0"]),
        sweep([1.0, 2.0], seed=["0", "0"]),
        sweep([None], seed=["0", "1"]),
        [entry("0", "running", {"seed": "0"}, test_loss=1.0), entry("1", "interrupted", {"seed": "1"}, test_loss=2.0)],
        [entry("0", overrides={"seed": "0"}, test_loss=None), entry("1", overrides={"seed": "1"}, test_loss=None)],
    ],
    ids=["one run", "all keys equal", "all failed", "none finished", "no finite loss"],
)
def test_there_is_no_figure_without_a_finite_loss_or_a_key_that_differs(runs):
    assert draw(runs) is None


def test_every_key_that_differs_has_a_panel_at_most_three_in_a_row():
    figure = draw(sweep([1.0, 2.0, 3.0], a=["1", "2"], b=["x", "y"], same=["0"], c=["1", "2"], d=["p", "q"]))
    assert [axes.get_xlabel() for axes in figure.axes] == ["a", "b", "c", "d"]
    columns = {axes.get_subplotspec().get_gridspec().ncols for axes in figure.axes}
    assert columns == {2}
    assert [axes.get_ylabel() for axes in figure.axes] == ["final test/loss", "", "final test/loss", ""]


@pytest.mark.parametrize(
    ("values", "scale", "shown", "places"),
    [
        (["0.1", "1e-3", "0.01"], "log", ["1e-3", "0.01", "0.1"], [0.001, 0.01, 0.1]),
        (["7", "1"], "linear", ["1", "7"], [1, 7]),
        (["8", "1"], "log", ["1", "8"], [1, 8]),
        (["0", "100"], "linear", ["0", "100"], [0, 100]),
        (["-1", "100"], "linear", ["-1", "100"], [-1, 100]),
        (["null", "1", "100"], "linear", ["null", "1", "100"], [0, 1, 2]),
        (["[64,64]", "[8]"], "linear", ["[64,64]", "[8]"], [0, 1]),
        (["nan", "1", "100"], "linear", ["nan", "1", "100"], [0, 1, 2]),
    ],
)
def test_numbers_lie_where_they_belong_and_words_side_by_side(values, scale, shown, places):
    (axes,) = draw(sweep([1.0, 2.0], key=values)).axes
    assert axes.get_xscale() == scale
    assert labels(axes) == shown
    assert axes.get_xticks().tolist() == places


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([1.0, 8.0], "log"), ([1.0, 7.9], "linear"), ([0.0, 100.0], "linear"), ([-1.0, 9.0], "linear")],
)
def test_losses_that_are_wide_apart_are_on_a_logarithmic_axis(losses, scale):
    (axes,) = draw(sweep(losses, key=["x", "y"])).axes
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low < min(losses) < max(losses) < high


def test_runs_that_agree_in_all_other_keys_are_joined_over_numbers_only():
    runs = sweep([1.0, 2.0, 3.0, 4.0], rule=["adam", "momentum"], learning_rate=["1", "0.1"])
    rules, rates = draw(runs).axes
    assert lines(rules) == []
    assert lines(rates) == [[[0.1, 2.0], [1, 1.0]], [[0.1, 4.0], [1, 3.0]]]


def test_a_colour_means_the_same_in_all_panels():
    figure = draw(sweep([1.0, 2.0], rate=["1", "2", "3", "4", "5"], rule=["adam", "momentum"], seed=["0", "1"]))
    assert legend(figure) == ["rule=adam", "rule=momentum", "best: 1"]
    found = {
        line.get_label(): line.get_color()
        for axes in figure.axes
        for line in axes.lines
        if line.get_label().startswith("rule")
    }
    assert len(set(found.values())) == 2


def test_a_key_that_is_alone_needs_no_colours():
    assert legend(draw(sweep([2.0, 1.0], rule=["adam", "momentum"]))) == ["run", "best: 1"]


def test_the_best_run_is_marked_in_every_panel_that_has_its_key():
    runs = sweep([3.0, 2.0], rule=["adam"], rate=["1", "2"]) + sweep(
        [1.5, 1.0], rule=["momentum"], nesterov=["yes", "no"]
    )
    marked = [[line for line in axes.lines if line.get_label().startswith("best")] for axes in draw(runs).axes]
    assert [len(found) for found in marked] == [1, 0, 1]
    assert marked[0][0].get_xydata().tolist() == [[1, 1.0]]


def test_runs_that_diverged_are_crosses_above_all_losses():
    runs = sweep([1.0, 9.0, None], learning_rate=["0.1", "1", "10"])
    runs += [
        entry("null", overrides={"learning_rate": "100"}, test_loss=None),
        entry("stopped", "interrupted", {"learning_rate": "1000"}, test_loss=5.0),
        entry("another experiment", overrides={"learning_rate": "10000"}),
    ]
    figure = draw(runs)
    (axes,) = figure.axes
    assert crosses(axes) == [10, 100]
    assert legend(figure) == ["run", "best: 1", "failed"]
    figure.draw_without_rendering()
    (cross,) = (line for line in axes.lines if line.get_marker() == "x" and len(line.get_xdata()))
    bottom_of_crosses = cross.get_transform().transform(cross.get_xydata())[:, 1].min()
    assert bottom_of_crosses > axes.transData.transform((1, 9.0))[1]


def test_a_figure_without_failures_does_not_speak_of_any():
    assert "failed" not in legend(draw(sweep([1.0, 2.0], seed=["0", "1"])))


def overlapping(figure):
    """Return the pairs of neighbouring labels of values that run into each other, once drawn."""
    figure.draw_without_rendering()
    found = []
    for axes in figure.axes:
        ticks = [tick for tick in axes.get_xticklabels() if tick.get_text() and not tick.get_rotation()]
        boxes = [tick.get_window_extent() for tick in sorted(ticks, key=lambda tick: tick.get_position()[0])]
        found += [pair for pair in itertools.pairwise(boxes) if pair[0].x1 >= pair[1].x0]
    return found


@pytest.mark.parametrize(
    "keys",
    [
        {"rule": ["gradient_descent", "momentum"], "learning_rate": ["0.1", "0.01"]},
        {"learning_rate": ["0.0003", "0.001", "0.003", "0.01", "0.03", "0.1", "0.3", "1"]},
        {"rule": ["adam", "momentum", "rmsprop"], "learning_rate": ["0.1", "0.03", "0.01"], "seed": ["0", "1", "2"]},
        {"a": ["1", "2"], "b": ["0.001", "0.01", "0.1", "1", "10"], "c": ["16", "64"], "d": ["[64]", "[64,64]"]},
        {"objective.hidden": ["[512,512,512,512,512,512,512]", "[256,256]", "[8]"], "seed": ["0", "1"]},
        {"objective": [f"objective_{i}" for i in range(12)], "seed": [str(i) for i in range(20)]},
        {"learning_rate": ["0.1", "1e-1", "0.10", "0.11", "0.112", "5"], "batch_size": ["1", "2", "3", "1000"]},
    ],
    ids=["2 x 2", "8 numbers", "with seeds", "40 runs", "long words", "12 words and 20 seeds", "close numbers"],
)
def test_labels_do_not_run_into_each_other(keys):
    figure = draw(sweep([0.3, 0.02, 0.1, 0.07, None], **keys))
    assert not overlapping(figure)
    assert all(axes.bbox.height / figure.dpi > 1.5 for axes in figure.axes)  # inches left for the data


def test_long_words_are_shortened_in_their_middle():
    (axes,) = draw(sweep([1.0, 2.0], hidden=["[512,512,512,512,512,512]", "[8]"])).axes
    assert labels(axes) == ["[512,512,5…,512,512]", "[8]"]


@pytest.mark.parametrize(
    "losses", [(1e-320, 1e307), (0.0, 0.0), (0.0, 1e-30), (-1e308, 1e308), (1.0, 1.0), (3e38, -1e20), (1e-310, 1e-300)]
)
def test_extreme_losses_are_drawn(losses):
    draw(sweep(losses, seed=["0", "1"])).draw_without_rendering()
