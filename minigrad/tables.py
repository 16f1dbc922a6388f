"""Short tables of results: aligned for a terminal, and in Markdown for TensorBoard."""

from collections.abc import Sequence

Cell = str | bool | float


def plain(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return the table with aligned columns, numbers to the right."""
    header, *body = _shown(columns, rows)
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    lines = [
        "  ".join(
            cell.rjust(n) if right else cell.ljust(n) for cell, n, right in zip(row, widths, numeric, strict=True)
        )
        for row in (header, ["-" * n for n in widths], *body)
    ]
    return "\n".join(line.rstrip() for line in lines)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return the table in Markdown, numbers to the right."""
    header, *body = _shown(columns, rows)
    rule = [":--" if not rows or not _is_number(rows[0][i]) else "--:" for i in range(len(columns))]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (header, rule, *body)
    )


def _shown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[list[str]]:
    return [list(columns), *([_show(cell) for cell in row] for row in rows)]


def _show(cell: Cell) -> str:
    return f"{cell:.6g}" if _is_number(cell) else str(cell)


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)
