"""Short tables of results: aligned for a terminal, and in Markdown for TensorBoard."""

from collections.abc import Sequence

Cell = str | bool | float


def plain(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return the table with aligned columns, numbers to the right."""
    table, numeric = _shown(columns, rows), _numeric(columns, rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    table.insert(1, ["-" * width for width in widths])
    forms = [f"{'>' if right else '<'}{width}" for right, width in zip(numeric, widths, strict=True)]
    lines = ("  ".join(map(format, row, forms)) for row in table)
    return "\n".join(line.rstrip() for line in lines)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return the table in Markdown, numbers to the right."""
    table = [[cell.replace("|", "\\|") for cell in row] for row in _shown(columns, rows)]
    table.insert(1, ["--:" if right else ":--" for right in _numeric(columns, rows)])
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def _shown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[list[str]]:
    return [list(columns), *([f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]


def _numeric(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[bool]:
    """Return which columns hold numbers, and else nothing but gaps."""
    cells = [[row[i] for row in rows if row[i] != ""] for i in range(len(columns))]
    return [bool(column) and all(map(_is_number, column)) for column in cells]


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)
