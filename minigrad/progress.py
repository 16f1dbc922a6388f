"""Progress: a bar on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

Report = Callable[[int, Mapping[str, float]], None]

_PLAIN_LINES = 10  # of a whole run


@contextmanager
def progress(total: int) -> Iterator[Report]:
    """Show how far a run of `total` steps is.

    Yields:
        A function to call with the number of steps made and the values to show beside it, by their tags.
    """
    console = Console()
    if not console.is_interactive:
        yield _plain_lines(total)
        return
    whole = [Column(no_wrap=True) for _ in range(4)]  # the bar alone shrinks on a narrow terminal
    columns = (
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        MofNCompleteColumn(table_column=whole[0]),
        _Speed(table_column=whole[1]),
        TimeRemainingColumn(table_column=whole[2]),
        TextColumn("{task.fields[values]}", markup=False, table_column=whole[3]),
    )
    with Progress(*columns, console=console, expand=True) as bar:
        task = bar.add_task("", total=total, values="")
        yield lambda step, values: bar.update(task, completed=step, values=_format(values), refresh=step == total)


def _plain_lines(total: int) -> Report:
    shown = -1

    def report(step: int, values: Mapping[str, float]) -> None:
        nonlocal shown
        part = step * _PLAIN_LINES // total
        if part > shown:
            shown = part
            print(f"step {step:>{len(str(total))}}/{total}  {_format(values)}", flush=True)

    return report


def _format(values: Mapping[str, float]) -> str:
    return "  ".join(f"{tag} {value:.4g}" for tag, value in values.items())


class _Speed(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} steps/s")
