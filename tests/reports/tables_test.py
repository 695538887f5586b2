"""Tables as text: alignment, no dependence on the terminal, cells."""

import pytest

from jaxmlic.reports import tables


def test_columns_are_aligned_and_lines_have_no_trailing_spaces():
    rows = [["a", "1", "x"], ["longer", "1,000", "y"]]
    assert tables.table(rows, "<><", header=["name", "count", "note"], indent=1).splitlines() == [
        " name    count  note",
        " a           1  x",
        " longer  1,000  y",
    ]


def test_the_last_alignment_is_that_of_all_later_columns():
    assert tables.table([["a", "b", "c"], ["aa", "bb", "cc"]], "<>").splitlines() == ["a    b   c", "aa  bb  cc"]


def test_markup_and_wide_characters_are_kept():
    rows = [["[red]a[/red] :smile:", "1"], ["日本語", "22"]]
    assert tables.table(rows, "<>").splitlines() == ["[red]a[/red] :smile:   1", "日本語                22"]


def test_a_terminal_changes_nothing(monkeypatch):
    row = ["x" * 300, "1.5"]
    for name, value in (("COLUMNS", "20"), ("FORCE_COLOR", "1"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    assert tables.table([row]) == "  ".join(row)


def test_tables_without_rows_or_with_uneven_ones():
    assert tables.table([]) == ""
    assert tables.table([], header=["a", "b"]) == "a  b"
    with pytest.raises(ValueError, match="1 cells in a table of 2 columns"):
        tables.table([["a", "b"], ["c"]])


def test_cells():
    assert tables.spread_cell([0.5, 0.7]) == "60.00 +- 14.14"
    assert tables.spread_cell([0.5]) == "50.00" and tables.spread_cell([]) == "nan"
    assert tables.percent(float("nan")) == "-" and tables.percent(0.12345) == "12.35"
    assert tables.shorten("a" * 25) == "a" * 23 + "…" and tables.shorten("a" * 24) == "a" * 24
