import pytest
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minigrad.tracking import Tracker


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
