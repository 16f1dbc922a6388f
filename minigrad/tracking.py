"""Tracking: what a run reports, in TensorBoard's event files; figures also as PNG.

Records are written with TensorBoard's own writer, but not through its thread: all values of a step are one event, at
about a third of the cost of one `SummaryWriter.add_scalar` each, and a full disk is an error where it happens.
"""

import json
import os
import re
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.node_def_pb2 import NodeDef
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams import plugin_data_pb2, summary_v2
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_BOOL,
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
    Status,
)
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from minigrad.autodiff.drawing import Drawing
from minigrad.autodiff.graph import Graph
from minigrad.errors import RunFailed
from minigrad.figures import DOTS_PER_INCH, as_png
from minigrad.leaderboard import JUDGED
from minigrad.monitoring.histogram import raw_histogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Value = bool | float | str

_MIXING = ("experiment", "objective")  # runs that differ in one of these are judged by different metrics


class Tracker:
    """Writes what a run reports below its directory. Every method raises RunFailed if the disk takes no more.

    Args:
        directory: the run's directory; event files lie in it, PNG files in its `figures/`.
    """

    def __init__(self, directory: Path) -> None:
        self._figures = directory / "figures"
        now = time.time_ns()  # TensorBoard reads files in the order of their names
        name = f"events.out.tfevents.{now // 10**9:010d}.{now % 10**9:09d}.{socket.gethostname()}.{os.getpid()}"
        try:
            self._file = (directory / name).open("xb")
        except OSError as error:
            raise RunFailed(f"{directory / name} cannot be written: {error.strerror}") from error
        self._records = RecordWriter(self._file)
        self._columns: Experiment | None = None  # of the HPARAMS page, until the run is first judged
        self._is_mixed = False
        self._write(Event(file_version="brain.Event:2"))

    def purge(self, step: int) -> None:
        """Let TensorBoard forget what earlier event files of the directory hold from this step on."""
        self._write(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step under their tags."""
        self._summary(step, [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        if self._columns is not None and "test/loss" in values:
            self._write_columns(self._columns, values)
            self._columns = None

    def figure(self, tag: str, figure: "Figure", step: int = 0) -> Path:
        """Write a matplotlib figure under its tag and as `figures/<tag>.png`; return the file's path."""
        content = as_png(figure)
        width, height = (round(inches * DOTS_PER_INCH) for inches in figure.get_size_inches())
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=content)
        self._summary(step, [Summary.Value(tag=tag, image=image)])
        return self._write_file(f"{tag.replace('/', '_')}.png", content)

    def histogram(self, tag: str, step: int, counts: Sequence[int], edges: Sequence[float]) -> None:
        """Write a histogram under its tag.

        Args:
            tag: what its values are; the page draws every bucket as wide as it is, so of magnitudes that lie apart by
                powers of two the exponents are written (`minigrad.monitoring.histogram`).
            step: when it was taken.
            counts: (buckets,), of the values in each bucket.
            edges: (buckets + 1,), rising: where each bucket begins, and where the last one ends.

        Raises:
            ValueError: the lengths do not fit.
        """
        raw = raw_histogram(counts, edges)
        content = HistogramProto(
            min=raw["min"],
            max=raw["max"],
            num=raw["num"],
            sum=raw["sum"],
            sum_squares=raw["sum_squares"],
            bucket_limit=raw["bucket_limits"],
            bucket=raw["bucket_counts"],
        )
        self._summary(step, [Summary.Value(tag=tag, histo=content)])

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """Write a text under its tag."""
        content = TensorProto(
            dtype=DT_STRING,
            string_val=[markdown.encode()],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        )
        metadata = create_summary_metadata(display_name=tag, description="")
        self._summary(step, [Summary.Value(tag=tag, metadata=metadata, tensor=content)])

    def graph(self, drawing: Drawing) -> Path:
        """Write a computation's graph to the page of graphs and as `figures/graph.svg`; return the file's path."""
        self._write(Event(graph_def=_graph_def(drawing.graph).SerializeToString()))
        return self._write_file("graph.svg", drawing.to_svg().encode())

    def hyperparameters(
        self, values: Mapping[str, Value], compared: Mapping[str, Collection[str]] = MappingProxyType({})
    ) -> None:
        """Write what the HPARAMS page shows of this run; its metrics there are the last values of its curves.

        The page takes its columns from any one run below the folder it shows, whichever it comes upon; where none says
        them, it takes every curve for a metric, those of the layers too, and shows the first five. So every run that
        is judged says them all, and those of a sweep say the same.

        Args:
            values: by key.
            compared: the keys of which the page shows columns first, each with all the values that it has in the runs
                compared, as on the command line, or with none if they are not known.
        """
        own = dict(values)
        for key, texts in compared.items():
            if "null" in texts:  # then they are texts: the page leaves out a run without a value
                own[key] = next((text for text in texts if _value(text) == values.get(key)), "null")
        self._summary(0, summary_v2.hparams_pb(own, trial_id="").value)  # without an id it has the run's name
        self._columns = Experiment(hparam_infos=[_column(key, value, compared) for key, value in own.items()])
        self._is_mixed = any(len(compared.get(key, ())) > 1 for key in _MIXING)

    def end(self, succeeded: bool) -> None:
        """Write to the HPARAMS page how the run ended."""
        status = Status.STATUS_SUCCESS if succeeded else Status.STATUS_FAILURE
        info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
        self._of_hparams(hparams_metadata.SESSION_END_INFO_TAG, session_end_info=info)

    def flush(self) -> None:
        """Hand what was written to the system, so that it is seen, and outlives this process."""
        try:
            self._records.flush()
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Flush and close the event file."""
        try:
            self._records.close()
        except OSError as error:
            raise self._failure(error) from error

    def discard(self) -> None:
        """Remove the event file, once it is closed."""
        Path(self._file.name).unlink(missing_ok=True)

    def _write_file(self, name: str, content: bytes) -> Path:
        path = self._figures / name
        try:
            self._figures.mkdir(exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise RunFailed(f"{path} cannot be written: {error.strerror}") from error
        return path

    def _write_columns(self, columns: Experiment, judged: Collection[str]) -> None:
        """Write the columns of the HPARAMS page; two of its views leave out a run that lacks one of the metrics."""
        metrics = [tag for tag in JUDGED if tag in judged or self._is_mixed]
        columns.metric_infos.extend(MetricInfo(name=MetricName(tag=tag)) for tag in (*metrics, "train/loss"))
        self._of_hparams(hparams_metadata.EXPERIMENT_TAG, experiment=columns)

    def _of_hparams(self, tag: str, **content: Any) -> None:
        metadata = hparams_metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**content))
        self._summary(0, [Summary.Value(tag=tag, metadata=metadata, tensor=hparams_metadata.NULL_TENSOR)])

    def _summary(self, step: int, values: list[Summary.Value]) -> None:
        self._write(Event(step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        try:
            self._records.write(event.SerializeToString())
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> RunFailed:
        return RunFailed(f"{self._file.name} cannot be written: {error.strerror}")


class Silent(Tracker):
    """Writes nothing: of several ranks the first alone does."""

    def __init__(self) -> None:
        self._columns, self._is_mixed = None, False

    def figure(self, tag: str, figure: "Figure", step: int = 0) -> Path:
        """Draw nothing."""
        return Path()

    def graph(self, drawing: Drawing) -> Path:
        """Draw nothing."""
        return Path()

    def flush(self) -> None:
        """Have nothing to flush."""

    def close(self) -> None:
        """Have nothing to close."""

    def discard(self) -> None:
        """Have nothing to remove."""

    def _write(self, event: Event) -> None:
        """Write nothing."""


def _graph_def(graph: Graph) -> GraphDef:
    """Return a graph as TensorBoard reads it: every node under a name of its own, with the shape of its results."""
    names: dict[str, None] = {}  # in order, each once
    for number, node in enumerate(graph.nodes):
        name = re.sub(r"[^\w.]+", "_", node.label).strip("_") or node.kind
        while name in names:
            name += f"_{number}"
        names[name] = None
    nodes, ordered = [], list(names)
    for name, node in zip(ordered, graph.nodes, strict=True):
        shapes = [TensorShapeProto(dim=[TensorShapeProto.Dim(size=n) for n in shape]) for shape in node.shapes]
        attributes = {
            "_output_shapes": AttrValue(list=AttrValue.ListValue(shape=shapes)),
            "dtype": AttrValue(s=str(node.dtype).encode()),
            "saved_bytes": AttrValue(i=sum(saved.bytes for saved in node.saved or ())),
        }
        kind = node.label if node.kind == "operation" else node.kind
        nodes.append(NodeDef(name=name, op=kind, input=[ordered[source] for source in node.inputs], attr=attributes))
    return GraphDef(node=nodes)


def _column(key: str, own: Value, compared: Mapping[str, Collection[str]]) -> HParamInfo:
    """Return what the HPARAMS page is told of a key: its type, and what its values are chosen from if that is known."""
    texts = list(compared.get(key, ()))
    values = texts if "null" in texts else [_value(text) for text in texts]
    column = HParamInfo(name=key, type=DATA_TYPE_STRING, differs=key in compared)
    kinds = {type(value) for value in (own, *values)}
    if kinds == {bool}:
        column.type = DATA_TYPE_BOOL
        column.domain_discrete.extend(dict.fromkeys(values))
    elif kinds <= {int, float}:
        column.type = DATA_TYPE_FLOAT64
    else:
        column.domain_discrete.extend(dict.fromkeys(map(str, values)))
    return column


def _value(text: str) -> Value | None:
    """Return a value of the command line as hyperparameters have it: a list is a text, and null is None."""
    try:
        value = json.loads({"True": "true", "False": "false"}.get(text, text))  # Hydra writes them as Python does
    except ValueError:
        return text
    return json.dumps(value) if isinstance(value, list | dict) else value
