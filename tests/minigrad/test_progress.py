import rich.progress
from rich.console import Console

import minigrad.progress
from minigrad.progress import progress


def test_off_a_terminal_there_are_plain_lines_and_not_too_many(capsys):
    with progress(1000) as report:
        for step in range(0, 1001, 10):
            report(step, {"train/loss": 1.5, "test/accuracy": 0.25})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert lines[0] == "step    0/1000  train/loss 1.5  test/accuracy 0.25"
    assert lines[-1] == "step 1000/1000  train/loss 1.5  test/accuracy 0.25"


def test_on_a_terminal_there_is_a_bar_that_ends_full(monkeypatch, capsys):
    terminal = Console(force_terminal=True, force_interactive=True, width=100)
    monkeypatch.setattr(minigrad.progress, "Console", lambda: terminal)
    with progress(20) as report:
        for step in range(0, 21, 5):
            report(step, {"train/loss": 1 / (step + 1)})
    shown = capsys.readouterr().out
    assert "20/20" in shown
    assert "train/loss 0.04762" in shown


def test_the_speed_is_blank_before_the_first_step():
    task = rich.progress.Task(rich.progress.TaskID(0), "", 10, 0, _get_time=lambda: 0.0)
    assert minigrad.progress._Speed().render(task).plain == ""
