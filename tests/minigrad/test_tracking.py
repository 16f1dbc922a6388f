import json
import math
import resource
import shutil
from pathlib import Path

import pytest
import torch
from google.protobuf.json_format import MessageToJson
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups
from torch.utils.tensorboard import SummaryWriter

import minigrad
from minigrad.autodiff.drawing import draw_graph
from minigrad.config import RunConfig
from minigrad.errors import RunFailed
from minigrad.monitoring.histogram import raw_histogram
from minigrad.run import Run
from minigrad.tracking import Silent, Tracker
from minigrad.train import main
from runs import resume, signalled_after


def test_scalars_and_figures_are_read_back_by_tensorboard(tmp_path):
    tracker = Tracker(tmp_path)
    for step in range(3):
        tracker.scalars(step, {"train/loss": 1 / (step + 1), "gradient_norm": step})
    figure = Figure(figsize=(4, 2))
    figure.subplots().plot([0, 1], [0, 1])
    path = tracker.figure("exactness/tanh", figure)
    tracker.close()

    events = EventAccumulator(str(tmp_path)).Reload()
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == [0, 1, 2]
    assert [event.value for event in losses] == pytest.approx([1, 1 / 2, 1 / 3])
    assert [event.value for event in events.Scalars("gradient_norm")] == [0, 1, 2]
    (image,) = events.Images("exactness/tanh")
    assert path == tmp_path / "figures" / "exactness_tanh.png"
    assert path.read_bytes() == image.encoded_image_string
    with Image.open(path) as opened:
        assert opened.size == (image.width, image.height) == (600, 300)


def test_a_graph_is_read_back_by_tensorboard_and_lies_in_the_figures(tmp_path):
    x, w = torch.rand(8, 5), torch.rand(5, 4, requires_grad=True)
    product = x @ w
    tracker = Tracker(tmp_path)
    path = tracker.graph(draw_graph(minigrad.tanh(product) + product.tanh().tanh(), {"x": x, "layer 0/w": w}))
    tracker.close()

    nodes = {node.name: node for node in EventAccumulator(str(tmp_path)).Reload().Graph().node}
    assert {name: list(node.input) for name, node in nodes.items()} == {
        "add": ["minigrad.tanh", "tanh"],
        "minigrad.tanh": ["mm"],
        "tanh": ["tanh_3"],
        "tanh_3": ["mm"],
        "mm": ["layer_0_w", "x"],
        "layer_0_w": [],
        "x": [],
    }
    (shape,) = nodes["mm"].attr["_output_shapes"].list.shape
    assert [dimension.size for dimension in shape.dim] == [8, 4]
    assert nodes["mm"].attr["saved_bytes"].i == 160
    assert (nodes["x"].op, nodes["layer_0_w"].op, nodes["mm"].op) == ("constant", "leaf", "mm")
    assert path == tmp_path / "figures" / "graph.svg"
    assert path.read_text().startswith("<svg ")


def test_every_node_of_a_graph_has_a_name_of_its_own(tmp_path):
    x, y, z = (torch.rand(2, requires_grad=True) for _ in range(3))
    tracker = Tracker(tmp_path)
    tracker.graph(draw_graph([x, y, z], {"a": x, "a_2": y, "a ": z}))
    tracker.close()
    assert [n.name for n in EventAccumulator(str(tmp_path)).Reload().Graph().node] == ["a", "a_2", "a_2_2"]


def curve(directory: Path | str, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(directory), {"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_what_comes_after_the_purged_step_is_forgotten(tmp_path):
    first = Tracker(tmp_path)
    for step in range(6):
        first.scalars(step, {"train/loss": 1.0})
    first.close()
    second = Tracker(tmp_path)
    second.purge(3)
    for step in range(3, 5):
        second.scalars(step, {"train/loss": 2.0})
    second.close()
    assert curve(tmp_path, "train/loss") == [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2)]


def test_a_record_that_was_cut_short_hides_nothing_that_comes_after(tmp_path):
    first = Tracker(tmp_path)
    for step in range(6):
        first.scalars(step, {"train/loss": 1.0})
    first.close()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-20])  # as a killed process leaves it
    second = Tracker(tmp_path)
    second.purge(4)
    second.scalars(4, {"train/loss": 2.0})
    second.close()
    assert curve(tmp_path, "train/loss") == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2)]


def test_what_was_flushed_is_read_while_the_run_goes_on(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.scalars(0, {"train/loss": 1.0})
    tracker.flush()
    assert curve(tmp_path, "train/loss") == [(0, 1)]
    tracker.close()


def test_a_text_is_read_back(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.text("config", "```yaml\nseed: 0\n```")
    tracker.close()
    (event,) = EventAccumulator(str(tmp_path)).Reload().Tensors("config")
    assert event.tensor_proto.string_val == [b"```yaml\nseed: 0\n```"]


def test_a_histogram_is_what_a_summary_writer_writes_of_it(tmp_path):
    counts, edges = [0, 3, 0, 5, 0], [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0]
    (tmp_path / "ours").mkdir()
    tracker = Tracker(tmp_path / "ours")
    tracker.histogram("log2_gradient", 7, counts, edges)
    tracker.close()
    with SummaryWriter(str(tmp_path / "theirs")) as writer:
        writer.add_histogram_raw("log2_gradient", **raw_histogram(counts, edges), global_step=7)
    (ours,), (theirs,) = (
        EventAccumulator(str(tmp_path / name)).Reload().Histograms("log2_gradient") for name in ("ours", "theirs")
    )
    assert (ours.step, ours.histogram_value) == (theirs.step, theirs.histogram_value)
    assert ours.step == 7
    assert list(ours.histogram_value.bucket) == counts


def test_a_run_writes_a_histogram_of_a_step(tmp_path):
    settings = {"experiment": "exactness", "seed": 0, "device": "cpu", "threads": 1, "deterministic": False}
    with Run(RunConfig(**settings, run_dir=str(tmp_path / "here"))) as run:
        run.histogram("log2_gradient", 2, [3, 4], [-1.0, 0.0, 1.0])
    (event,) = EventAccumulator(str(tmp_path / "here")).Reload().Histograms("log2_gradient")
    assert (event.step, list(event.histogram_value.bucket)) == (2, [3, 4])


@pytest.mark.parametrize("report", ["scalars", "text", "flush", "close", "figure", "histogram"])
def test_a_full_disk_is_an_error_where_it_happens(report, tmp_path):
    tracker = Tracker(tmp_path)
    tracker.text("fill", "x" * 3000)
    actions = {
        "scalars": lambda: [tracker.scalars(step, {"train/loss": 1.0}) for step in range(10_000)],
        "text": lambda: tracker.text("config", "x" * 100_000),
        "flush": tracker.flush,
        "close": tracker.close,
        "figure": lambda: tracker.figure("path", Figure()),
        "histogram": lambda: [tracker.histogram("log2_gradient", step, [1], [0.0, 1.0]) for step in range(1000)],
    }
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(RunFailed, match=r"(events\.out|path\.png).* cannot be written: File too large$"):
            actions[report]()
        if report != "close":
            with pytest.raises(RunFailed):
                tracker.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def page(folder: Path | str) -> backend_context.Context:
    """Return what TensorBoard's HPARAMS page asks of the runs below a folder."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    return backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder))))


def columns(folder: Path | str) -> api_pb2.Experiment:
    """Return the columns of the HPARAMS page of the runs below a folder."""
    return get_experiment.Handler(RequestContext(), page(folder), "", api_pb2.GetExperimentRequest()).run()


def metrics(folder: Path | str) -> list[str]:
    return [info.name.tag for info in columns(folder).metric_infos]


def sessions(folder: Path | str) -> dict[str, api_pb2.SessionGroup]:
    """Return what TensorBoard's HPARAMS page shows of the runs below a folder, by the name of the run."""
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        allowed_statuses=api_pb2.Status.values(),
    )
    found = list_session_groups.Handler(RequestContext(), page(folder), "", request).run()
    return {group.sessions[0].name: group for group in found.session_groups}


def hyperparameters(group: api_pb2.SessionGroup) -> dict[str, object]:
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in group.hparams.items()}


@pytest.fixture
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_the_runs_of_a_sweep_are_on_the_hparams_page():
    overrides = ["objective=quadratic", "objective.dimensions=3", "steps=4"]
    assert main([*overrides, "-m", "learning_rate=0.1,0.05", "rule=adam,momentum"]) == 0
    directories = {str(file.parent.relative_to("runs")): file.parent for file in Path("runs").rglob("config.yaml")}
    shown = sessions("runs")
    assert set(shown) == set(directories)  # in the run's own file: no folders beside those of the runs
    settings = {name: hyperparameters(group) for name, group in shown.items()}
    chosen = {(found["learning_rate"], found["rule"]) for found in settings.values()}
    assert chosen == {(0.1, "adam"), (0.1, "momentum"), (0.05, "adam"), (0.05, "momentum")}
    for name, group in shown.items():
        assert settings[name]["objective.dimensions"] == 3
        assert "run_dir" not in settings[name]
        (session,) = group.sessions
        assert session.status == api_pb2.STATUS_SUCCESS
        assert session.end_time_secs >= session.start_time_secs > 0
        metrics = {value.name.tag: (value.training_step, value.value) for value in session.metric_values}
        for tag in ("train/loss", "test/loss", "distance_to_minimum"):
            assert metrics[tag] == curve(directories[name], tag)[-1]
        assert len(list(directories[name].glob("events.*"))) == 1


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_the_hparams_page_tells_how_a_run_ended():
    recipe = ["objective=quadratic", "objective.dimensions=3", "steps=4"]
    assert main([*recipe, "run_dir=runs/failed", "learning_rate=1e30"]) == 1
    for seed, name in enumerate(("interrupted", "resumed")):  # runs of the same settings would be one group
        with signalled_after(2):
            assert main([*recipe, f"run_dir=runs/{name}", f"seed={seed}"]) == 130
    resume("runs/resumed")
    status = {name: group.sessions[0].status for name, group in sessions("runs").items()}
    assert status == {
        "failed": api_pb2.STATUS_FAILURE,
        "interrupted": api_pb2.STATUS_UNKNOWN,  # it may go on
        "resumed": api_pb2.STATUS_SUCCESS,
    }


def write_run(directory, values, compared, judged, **others):
    """Write a run that is judged so, with the curves of a watched network, and perhaps further ones."""
    directory.mkdir(parents=True)
    tracker = Tracker(directory)
    tracker.hyperparameters(values, compared)
    for step in range(2):
        tracker.scalars(step, {"flow/network.0/gain": 0.5, "gradient_norm": 1.0, "train/loss": 2.0, **others})
        tracker.scalars(step, judged)
    tracker.end(succeeded=True)
    tracker.close()


LOSS = {"test/loss": 0.25}


def test_the_hparams_page_has_columns_for_what_a_run_is_judged_by_alone(tmp_path):
    write_run(tmp_path / "run", {"seed": 0}, {}, {"test/accuracy": 0.5, "test/loss": 0.25, "test/other": 1.0})
    assert metrics(tmp_path) == ["test/loss", "test/accuracy", "train/loss"]
    (group,) = sessions(tmp_path).values()
    assert {value.name.tag: value.value for value in group.sessions[0].metric_values} == {
        "test/loss": 0.25,
        "test/accuracy": 0.5,
        "train/loss": 2.0,
    }


@pytest.mark.parametrize("key", ["objective", "experiment"])
def test_whichever_run_of_a_mixed_sweep_is_asked_the_page_has_all_metrics(key, tmp_path):
    compared = {key: ["digits", "diabetes", "booth"]}
    judged = {"digits": {"test/accuracy": 0.5}, "diabetes": {"test/r2": 0.5}, "booth": {"distance_to_minimum": 1.0}}
    for name, quality in judged.items():
        write_run(tmp_path / name, {key: name}, compared, {**LOSS, **quality})
    everything = ["test/loss", "test/accuracy", "test/r2", "distance_to_minimum", "train/loss"]
    assert [metrics(tmp_path / name) for name in judged] == [everything] * 3
    shown = {name: {v.name.tag for v in group.sessions[0].metric_values} for name, group in sessions(tmp_path).items()}
    assert shown == {name: {"test/loss", "train/loss", *quality} for name, quality in judged.items()}


def test_the_metrics_of_runs_that_are_not_judged_are_all_their_curves(tmp_path):
    (tmp_path / "run").mkdir()
    tracker = Tracker(tmp_path / "run")
    tracker.hyperparameters({"order": 3, "experiment": "higher_order"}, {"order": ["3", "4"]})
    tracker.scalars(0, {"higher_order/tanh": 1.0})
    tracker.close()
    assert metrics(tmp_path) == ["higher_order/tanh"]
    assert [info.name for info in columns(tmp_path).hparam_infos] == ["experiment", "order"]


def test_the_keys_compared_come_first_with_all_their_values(tmp_path):
    compared = {
        "rule": ["adam", "momentum"],
        "learning_rate": ["0.1", "1e-3", "1"],
        "deterministic": ["True", "false"],
        "objective.hidden": ["[8]", "[8,8]"],
        "clip_norm": ["null", "2"],
    }
    values = {
        "activation": "tanh",
        "accumulate": 1,
        "rule": "adam",
        "learning_rate": 0.001,
        "deterministic": False,
        "objective.hidden": "[8, 8]",
        "trainable": True,
    }
    write_run(tmp_path / "run", values, compared, LOSS)
    found = {info.name: info for info in columns(tmp_path).hparam_infos}
    assert list(found) == [*sorted(compared), "accumulate", "activation", "trainable"]
    assert [info.differs for info in found.values()] == [True] * 5 + [False] * 3
    kinds = {
        api_pb2.DATA_TYPE_STRING: {"activation", "clip_norm", "objective.hidden", "rule"},
        api_pb2.DATA_TYPE_FLOAT64: {"accumulate", "learning_rate"},
        api_pb2.DATA_TYPE_BOOL: {"deterministic", "trainable"},
    }
    assert {kind: {name for name, info in found.items() if info.type == kind} for kind in kinds} == kinds
    choices = {name: list(info.domain_discrete) for name, info in found.items() if info.HasField("domain_discrete")}
    assert {name: choice for name, choice in choices.items() if choice} == {
        "rule": ["adam", "momentum"],
        "deterministic": [True, False],
        "objective.hidden": ["[8]", "[8, 8]"],
        "clip_norm": ["null", "2"],
    }
    (group,) = sessions(tmp_path).values()
    assert hyperparameters(group) == {**values, "clip_norm": "null"}


def test_a_key_that_a_run_does_not_have_and_values_that_are_not_known_are_left_out(tmp_path):
    write_run(tmp_path / "run", {"rule": "adam", "seed": 0}, {"rule": (), "run_dir": ["here"]}, LOSS)
    rule, seed = columns(tmp_path).hparam_infos
    assert (rule.name, rule.differs, list(rule.domain_discrete)) == ("rule", True, [])
    assert (seed.name, seed.differs) == ("seed", False)


def test_null_is_a_value_among_others_where_it_is_compared(tmp_path):
    compared = {"clip_norm": ["null", "2", "1e-1"]}
    for name, values in {"none": {}, "two": {"clip_norm": 2.0}, "tenth": {"clip_norm": 0.1}}.items():
        write_run(tmp_path / name, {"seed": 0, **values}, compared, LOSS)
    shown = {name: hyperparameters(group)["clip_norm"] for name, group in sessions(tmp_path).items()}
    assert shown == {"none": "null", "two": "2", "tenth": "1e-1"}


def test_every_run_has_a_line_of_its_own_under_the_name_of_its_directory(tmp_path):
    for name in ("a/first", "b/first"):
        write_run(tmp_path / name, {"seed": 0}, {}, LOSS)
    (tmp_path / "a").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "b", tmp_path / "copied")
    lines = {"moved/first", "b/first", "copied/first"}
    assert {group.name for group in sessions(tmp_path).values()} == lines


def test_a_loss_that_is_not_finite_leaves_the_hparams_page_readable(tmp_path):
    write_run(tmp_path / "run", {"seed": 0}, {}, {"test/loss": math.nan})
    (group,) = sessions(tmp_path).values()
    shown = json.loads(MessageToJson(group))["sessions"][0]["metricValues"]
    assert {metric["name"]["tag"]: metric["value"] for metric in shown} == {"test/loss": "NaN", "train/loss": 2.0}


@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize(
    ("objective", "quality"),
    [("digits", "test/accuracy"), ("diabetes", "test/r2"), ("parabola", "distance_to_minimum")],
)
def test_the_curves_of_the_layers_are_no_metrics_of_a_training(objective, quality):
    assert main([f"objective={objective}", "steps=2", "run_dir=runs/here"]) == 0
    assert metrics("runs") == ["test/loss", quality, "train/loss"]


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_a_run_shows_its_config_and_its_path():
    assert main(["objective=booth", "steps=4", "run_dir=here"]) == 0
    events = EventAccumulator("here").Reload()
    (config,) = events.Tensors("config")
    text = Path("here/config.yaml").read_text()
    assert config.tensor_proto.string_val == [f"```yaml\n{text}```".encode()]
    (image,) = events.Images("path")
    assert image.step == 4
    assert Path("here/figures/path.png").read_bytes() == image.encoded_image_string


def test_the_tracker_of_a_rank_that_is_not_the_first_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = Silent()
    tracker.purge(3)
    tracker.hyperparameters({"seed": 0}, {"seed": ["0", "1"]})
    tracker.scalars(3, {"test/loss": 1.0})
    tracker.figure("a figure", Figure())
    tracker.histogram("counts", 3, [1], [0.0, 1.0])
    tracker.text("words", "some")
    tracker.graph(draw_graph(torch.ones(1, requires_grad=True) * 2))
    tracker.flush()
    tracker.end(succeeded=True)
    tracker.close()
    tracker.discard()
    assert not list(tmp_path.iterdir())
