"""The pages of results equal their data, rows without an origin are refused, and the documentation's links work."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from jaxmlic.errors import UserError

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results)

DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("launch/*.md")})
DOCUMENTS = [path for path in DOCUMENTS if path.relative_to(ROOT).parts[1:2] not in (("_build",), ("repository",))]
MACHINES = 'title = "m"\ncolumns = ["machine"]\nsource = "stated"\nrows = [["A"]]\n'
TABLE = """
title = "A table"
date = "2026-01-02"
command = "make a"
machine = "A"
columns = ["system", "mAP", "N+"]
rows = [
  ["ours", 41.60, 139, { front = true }],
  ["ours | later", "45.5 ± 0.2", 149, { date = "2026-01-03", load = "busy", command = "tune", stale = "it changed" }],
  ["theirs", "", 160, { source = "as published", front = "theirs (2015)" }],
]

[commands]
tune = "make b"
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "machines.toml").write_text(MACHINES, encoding="utf-8")
    (tmp_path / "table.toml").write_text(TABLE, encoding="utf-8")
    return tmp_path


def place(folder, text="table"):
    page = folder / "page.md"
    page.write_text(f"Before.\n\n<!-- table: {text} -->\nold\n<!-- end -->\n\nAfter.\n", encoding="utf-8")
    return page


@pytest.mark.parametrize("page", results.PAGES, ids=lambda page: page.name)
def test_pages_equal_their_data(page):
    """`make results` writes them."""
    assert results.build(page) == page.read_text(encoding="utf-8")


def test_every_data_file_is_shown():
    shown = {
        name
        for page in results.PAGES
        for _, spec, _ in results.PLACE.findall(page.read_text(encoding="utf-8"))
        for name in spec.split("|")[0].split()
    }
    assert shown == {path.stem for path in results.TABLES.glob("*.toml")}


def test_a_page_has_cells_as_written_marks_commands_and_sources(folder):
    page = place(folder)
    text = results.build(page, folder)
    assert (
        text
        == """Before.

<!-- table: table -->

**A table**

| system | mAP | N+ |
|---|---|---|
| ours | 41.60 | 139 |
| ours \\| later † | 45.5 ± 0.2 | 149 |
| theirs |  | 160 |

† Stale: it changed.

theirs: as published.

data: [table](./table.toml).

<details><summary>Commands, dates, machines</summary>

```
# ours
# 2026-01-02; machine A
make a

# ours \\| later
# 2026-01-03; machine A, busy
make b
```

</details>

<!-- end -->

After.
"""
    )
    page.write_text(text, encoding="utf-8")
    assert results.build(page, folder) == text


def test_the_first_page_takes_marked_rows_of_several_tables_and_chosen_columns(folder):
    other = 'title = "t"\ndate = "2026-01-02"\ncommand = "make c"\nmachine = "A"\ncolumns = ["head", "N+", "F1"]\n'
    (folder / "other.toml").write_text(other + 'rows = [["kernel", 140, 34.8, { front = true }]]\n', encoding="utf-8")
    text = results.build(place(folder, "table other | columns: F1, N+ | rows: front"), folder)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows == [
        "| system | F1 | N+ |",
        "|---|---|---|",
        "| ours |  | 139 |",
        "| kernel | 34.8 | 140 |",
        "| theirs (2015) |  | 160 |",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('date = "2026-01-02"\n', "", r"table.toml, row 1 \(ours\): no date; give it, or `source`"),
        ('command = "make a"\n', "", r"row 1 \(ours\): no command"),
        ('machine = "A"\n', "", r"row 1 \(ours\): no machine"),
        ("2026-01-02", "2 January", "row 1 .*'2 January' is not YYYY-MM-DD"),
        ('machine = "A"', 'machine = "B"', "row 1 .*'B' is not a row of machines.toml"),
        ('"ours", 41.60,', '"ours",', "row 1 .*2 cells for 3 columns"),
        ("stale =", "stail =", r"row 2 .*field 'stail' is unknown \(did you mean 'stale'\?\)"),
        ('title = "A table"', 'titel = "A table"', "table.toml: title, columns and rows have to be there"),
        ("rows = [", "rows = ", "table.toml: "),
    ],
)
def test_data_without_an_origin_are_refused(folder, old, new, message):
    assert TABLE.count(old) == 1
    (folder / "table.toml").write_text(TABLE.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        results.load("table", folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tabel", "tabel.toml: there is no such file"),
        ("table | columns: F1", "has no rows, or columns that no table has"),
        ("table | row: front", r"field 'row' is unknown \(did you mean 'rows'\?\)"),
    ],
)
def test_a_place_that_cannot_be_is_refused(folder, text, message):
    with pytest.raises(UserError, match=message):
        results.build(place(folder, text), folder)


def test_rows_of_runs_are_lines_of_a_data_file(tmp_path, monkeypatch):
    """Of one run as it is, of several their mean and deviation; commands without what only holds on this machine."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    result_row = importlib.import_module("result_row")
    start = {
        "time": "2026-01-02T03:04:05+00:00",
        "command": "jaxmlic train --workdir=/a/b --config.pretrained=/c/d.npz x",
    }
    files = []
    for seed, mean_ap in enumerate((0.47614, 0.49614)):
        run = tmp_path / f"seed{seed}"
        (run / "scores").mkdir(parents=True)
        (run / "config.json").write_text(json.dumps({"starts": [start]}), encoding="utf-8")
        files.append(run / "scores" / "test.top5_forced.json")
        numbers = {"mAP": mean_ap, "CP": 0.31532, "CR": 0.38829, "CF1": 0.348, "CF1_mean": 0.3252, "N+": 140 + 2 * seed}
        files[-1].write_text(json.dumps(numbers), encoding="utf-8")
    tail = '{ date = "2026-01-02", command = "jaxmlic train --workdir=DIR --config.pretrained=WEIGHTS x" }],'
    assert result_row.row("corel5k", files[:1]) == f'  ["seed0", 47.6, 31.5, 38.8, 34.8, 140, {tail}'
    cells = '"48.6 ± 1.4", "31.5 ± 0.0", "38.8 ± 0.0", "34.8 ± 0.0", "141.0 ± 1.4"'
    assert result_row.row("corel5k", files) == f'  ["seed0", {cells}, {tail}'


def anchors(document):
    """As GitHub makes them of headings."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)", text, re.M)
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_of_the_documentation_lead_somewhere(document):
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []
