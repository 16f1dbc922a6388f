"""Tracking: scalars and figures into TensorBoard's event files, figures also as PNG.

Events are written with TensorBoard's own writer: all values of a step are one event, at about a third of the cost of
one `SummaryWriter.add_scalar` each, and a figure is drawn once for both of its places.
"""

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 150


class Tracker:
    """Writes what a run reports below its directory.

    Args:
        directory: the run's directory; event files lie in it, PNG files in its `figures/`.
    """

    def __init__(self, directory: Path) -> None:
        self._figures = directory / "figures"
        self._writer = EventFileWriter(str(directory))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step under their tags."""
        self._write(step, [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])

    def figure(self, tag: str, figure: "Figure", step: int = 0) -> Path:
        """Write a matplotlib figure under its tag and as `figures/<tag>.png`; return the file's path."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH)
        width, height = (round(inches * _DOTS_PER_INCH) for inches in figure.get_size_inches())
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=buffer.getvalue())
        self._write(step, [Summary.Value(tag=tag, image=image)])
        self._figures.mkdir(exist_ok=True)
        path = self._figures / f"{tag.replace('/', '_')}.png"
        path.write_bytes(buffer.getvalue())
        return path

    def close(self) -> None:
        """Write what is still in memory and close the event file."""
        self._writer.close()

    def _write(self, step: int, values: list[Summary.Value]) -> None:
        self._writer.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=values)))
