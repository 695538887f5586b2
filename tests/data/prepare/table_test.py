"""Tables as people write them, and the mistakes people make in them."""

import json

import numpy as np
import pytest

from jaxmlic.data.prepare.tables import table
from jaxmlic.data.prepare.tables.sheets import Options, find_tables
from jaxmlic.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """A folder with images a.jpg .. f.jpg (the table reader never opens an image)."""
    (tmp_path / "images").mkdir()
    for name in "abcdef":
        (tmp_path / "images" / f"{name}.jpg").write_bytes(b"x")
    return tmp_path


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(folder, text=None, name="labels.csv", **options):
    source = folder if text is None else write(folder, name, text)
    return table.read(source, Options(**options))


def names(found, split="train"):
    """{id: set of present class names} of a split."""
    return {row.id: {found.class_names[i] for i in np.flatnonzero(row.labels == 1)} for row in found.splits[split]}


def only_problem(found):
    assert len(found.problems) == 1, [str(problem) for problem in found.problems]
    assert "\n" not in str(found.problems[0])
    return str(found.problems[0])


def test_header_and_semicolons(folder):
    found = read(folder, "image,labels\na.jpg,cat;dog\nb.jpg,\nc.jpg, dog ; bird \n")
    assert found.class_names == ["bird", "cat", "dog"]
    assert names(found) == {"a.jpg": {"cat", "dog"}, "b.jpg": set(), "c.jpg": {"bird", "dog"}}
    np.testing.assert_array_equal(found.splits["train"][0].labels, np.array([0, 1, 1], np.int8))
    assert found.splits["train"][0].labels.dtype == np.int8
    assert found.splits["train"][0].image.path == str(folder / "images" / "a.jpg")
    assert not found.problems and not found.has_boxes
    assert any("';'" in note for note in found.notes) and any("no split column" in note for note in found.notes)


@pytest.mark.parametrize(
    "text",
    [
        b"image,labels\r\na.jpg,cat;dog\r\nb.jpg,dog\r\n",
        b"\xef\xbb\xbfimage,labels\na.jpg,cat;dog\nb.jpg,dog",
        b'"image","labels"\n"a.jpg","cat;dog"\n"b.jpg","dog"\n\n\n',
        b"image,labels\n\na.jpg,cat;dog\n,\nb.jpg,dog\n\r\n",
        b"a.jpg,cat;dog\nb.jpg,dog\n",
        b"image,labels\na.jpg,cat|dog\nb.jpg,dog\n",
        b'image,labels\na.jpg,"cat,dog"\nb.jpg,dog\n',
        b"FileName,Tags\na.jpg,cat;dog\nb.jpg,dog\n",
        b"score,id,words\n0.5,a.jpg,cat;dog\n0.1,b.jpg,dog\n",
        b"cat,file,dog\n1,a.jpg,1\n0,b.jpg,1\n",
        b"file,cat,dog\na.jpg,1.0,1.0\nb.jpg,0.0,1.0\n",
        b"file,cat,dog\na.jpg,True,True\nb.jpg,False,True\n",
    ],
)
def test_the_same_table_in_many_spellings(folder, text):
    found = read(folder, text)
    assert names(found) == {"a.jpg": {"cat", "dog"}, "b.jpg": {"dog"}} and not found.problems
    assert [row.where[1] for row in found.splits["train"]] == sorted(row.where[1] for row in found.splits["train"])


def test_tsv_and_jsonl(folder):
    found = read(folder, "file\tlabels\na.jpg\tcat;big dog\n", name="x.tsv")
    assert names(found) == {"a.jpg": {"cat", "big dog"}}
    lines = [{"file": "a.jpg", "labels": ["cat", "dog"]}, {"file": "b.jpg", "labels": "dog;bird", "split": "test"}]
    lines += [{"file": "c.jpg", "labels": {"cat": 1, "dog": -1}}, {"image": "d.jpg", "tags": []}]
    found = read(folder, "\r\n".join(map(json.dumps, lines)) + "\n\n", name="x.jsonl")
    assert found.class_names == ["bird", "cat", "dog"]
    assert names(found) == {"a.jpg": {"cat", "dog"}, "c.jpg": {"cat"}, "d.jpg": set()}
    assert names(found, "test") == {"b.jpg": {"bird", "dog"}}
    np.testing.assert_array_equal(found.splits["train"][1].labels, [0, 1, -1])


def test_splits_of_a_folder(folder):
    write(folder, "test.csv", "a.jpg,cat\n")
    write(folder, "trainval.csv", "b.jpg,dog;cat\n")
    write(folder, "Valid.csv", "c.jpg,dog\n")
    write(folder, "source_map.csv", "this,is,no\ntable of,images,\n")
    found = read(folder)
    assert list(found.splits) == ["train", "val", "test"]
    assert [names(found, split) for split in found.splits] == [
        {"b.jpg": {"cat", "dog"}},
        {"c.jpg": {"dog"}},
        {"a.jpg": {"cat"}},
    ]
    write(folder, "train.csv", "d.jpg,dog\n")
    with pytest.raises(UserError, match=r"train\.csv and trainval\.csv both give the split 'train'"):
        read(folder)
    with pytest.raises(UserError, match="--split-column does not go with"):
        (folder / "train.csv").unlink()
        read(folder, split_column="x")


def test_which_table_of_a_folder(folder):
    with pytest.raises(UserError, match="no table and no class folders there"):
        read(folder)
    write(folder, "x.csv", "a.jpg,cat\n")
    assert find_tables(folder)[0] == [(folder / "x.csv", None)]
    write(folder, "y.csv", "b.jpg,dog\n")
    with pytest.raises(UserError, match=r"which of x\.csv, y\.csv"):
        read(folder)
    write(folder, "labels.csv", "c.jpg,bird\n")
    assert names(read(folder)) == {"c.jpg": {"bird"}}


def test_split_column(folder):
    found = read(folder, "image,split,labels\na.jpg,trainval2014,cat\nb.jpg,test,dog\nc.jpg,test,cat\n")
    assert {split: len(rows) for split, rows in found.splits.items()} == {"test": 2, "trainval2014": 1}
    found = read(folder, "image,fold,split,labels\na.jpg,x,1,cat\nb.jpg,y,1,dog\n", split_column="fold")
    assert list(found.splits) == ["x", "y"]
    found = read(folder, "image,split,labels\na.jpg,test,cat\n", name="train.csv")
    assert list(found.splits) == ["test"]
    bad = read(folder, "image,split,labels\na.jpg,train/x,cat\nb.jpg,all,cat\nc.jpg,,cat\n", name="labels.csv")
    assert [problem.line for problem in bad.problems] == [2, 3, 4] and "cannot name a split" in str(bad.problems[0])


def test_columns_by_name(folder):
    text = "key,what,extra\na.jpg,cat,1\nb.jpg,dog,2\n"
    found = read(folder, text, file_column="key", labels_column="what")
    assert names(found) == {"a.jpg": {"cat"}, "b.jpg": {"dog"}}
    assert any("not used: extra" in note for note in found.notes)
    with pytest.raises(UserError, match=r"labels\.csv:1: no column of file names .*--file-column"):
        read(folder, text)
    with pytest.raises(UserError, match=r"no column of labels .*--labels-column"):
        read(folder, text, file_column="key")
    with pytest.raises(UserError, match=r"no column 'wat' \(did you mean 'what'\?\): --labels-column"):
        read(folder, text, file_column="key", labels_column="wat")
    with pytest.raises(UserError, match="two columns are named 'cat'"):
        read(folder, "file,cat,cat\na.jpg,1,1\n")


def test_class_list_gives_the_order(folder):
    write(folder, "classes.txt", "zebra\ndog\ncat\n\n")
    found = read(folder, "a.jpg,cat;dog\n")
    assert found.class_names == ["zebra", "dog", "cat"]
    np.testing.assert_array_equal(found.splits["train"][0].labels, [0, 1, 1])
    mine = write(folder, "mine.list", "cat\r\ndog\r\n")
    assert read(folder, "a.jpg,cat;dog\n", classes=str(mine)).class_names == ["cat", "dog"]
    problem = only_problem(read(folder, "a.jpg,cat\nb.jpg,dgo\n"))
    assert problem.startswith("labels.csv:2: unknown label 'dgo' (did you mean 'dog'?)") and "classes.txt" in problem


@pytest.mark.parametrize(
    ("text", "match"),
    [("cat\ndog\ncat\n", r"classes\.txt:3: class 'cat' is already on line 1"), ("cat\n\ndog\n", r":2: empty class")],
)
def test_bad_class_list(folder, text, match):
    write(folder, "classes.txt", text)
    with pytest.raises(UserError, match=match):
        read(folder, "a.jpg,cat\n")


def test_spaces_need_proof(folder):
    text = "a.jpg,cat dog\nb.jpg,dog\n"
    with pytest.raises(UserError, match=r"labels\.csv:1: the labels 'cat dog' hold spaces: add --separator="):
        read(folder, text)
    assert read(folder, text, separator=" ").class_names == ["cat", "dog"]
    assert read(folder, text, separator="space").class_names == ["cat", "dog"]
    assert read(folder, text, separator=";").class_names == ["cat dog", "dog"]
    write(folder, "words.txt", "cat\ndog\n")
    assert names(read(folder, text)) == {"a.jpg": {"cat", "dog"}, "b.jpg": {"dog"}}
    # One mistyped word among many lines does not make it unclear.
    assert "unknown label 'dgo'" in only_problem(read(folder, text + "c.jpg,cat dgo\n"))
    write(folder, "words.txt", "cat dog\ndog\n")
    assert names(read(folder, text)) == {"a.jpg": {"cat dog"}, "b.jpg": {"dog"}}
    write(folder, "words.txt", "cat dog\ndog\ncat\n")
    with pytest.raises(UserError, match="hold spaces"):  # both readings are possible
        read(folder, text)


def test_one_hot_values(folder):
    rows = "a.jpg,1,0,-1\nb.jpg,0,0,1\n"
    found = read(folder, "name,cat,dog,bird\n" + rows)
    assert found.class_names == ["cat", "dog", "bird"]
    np.testing.assert_array_equal([row.labels for row in found.splits["train"]], [[1, 0, -1], [0, 0, 1]])
    voc = "name,cat,dog,bird\na.jpg,1,-1,0\nb.jpg,-1,-1,1\n"
    with pytest.raises(UserError, match=r"-1 occurs 3 times .*--label-values=1,-1,0.*--label-values=1,0,-1"):
        read(folder, voc)
    found = read(folder, voc, label_values="1,-1,0")
    np.testing.assert_array_equal([row.labels for row in found.splits["train"]], [[1, 0, -1], [0, 0, 1]])
    found = read(folder, voc, label_values="1,0,-1")
    np.testing.assert_array_equal(found.splits["train"][0].labels, [1, -1, 0])
    found = read(folder, "name,cat\na.jpg,Y\nb.jpg,?\nc.jpg,N\n", label_values="Y,N,?")
    np.testing.assert_array_equal([row.labels[0] for row in found.splits["train"]], [1, -1, 0])
    for bad in ("1,0", "1,1,0", "1,,0"):
        with pytest.raises(UserError, match="--label-values"):
            read(folder, voc, label_values=bad)


def test_one_hot_mistakes(folder):
    found = read(folder, "name,cat,dog\na.jpg,1,0\nb.jpg,2,0\nc.jpg,0,1\nd.jpg,,1\n")
    assert [problem.line for problem in found.problems] == [3, 5]
    assert "'cat' holds '2': expected one of 1, 0, -1" in str(found.problems[0])
    with pytest.raises(UserError, match="no header line"):
        read(folder, "a.jpg,1,0\nb.jpg,0,0\n")
    write(folder, "classes.txt", "dog\ncat\n")
    np.testing.assert_array_equal(read(folder, "a.jpg,1,0\nb.jpg,0,0\n").splits["train"][0].labels, [1, 0])
    found = read(folder, "name,cat,dog\na.jpg,1,0\n")  # a header and a list: the list's order
    assert found.class_names == ["dog", "cat"]
    np.testing.assert_array_equal(found.splits["train"][0].labels, [0, 1])
    with pytest.raises(UserError, match="class 'cow' is only in the header"):
        read(folder, "name,cat,cow\na.jpg,1,0\n")


def test_tables_whose_columns_stand_in_another_order(folder):
    write(folder, "train.csv", "name,cat,dog\na.jpg,1,0\n")
    write(folder, "test.csv", "name,dog,cat\nb.jpg,1,0\n")
    found = read(folder)
    assert names(found) == {"a.jpg": {"cat"}} and names(found, "test") == {"b.jpg": {"dog"}}
    write(folder, "test.csv", "name,dog,cow\nb.jpg,1,0\n")
    with pytest.raises(UserError, match=r"test\.csv:1: class 'cat' is only in the other table"):
        read(folder)


def test_images_are_found(folder):
    (folder / "JPEGImages").mkdir()
    (folder / "JPEGImages" / "000007.JPG").write_bytes(b"x")
    (folder / "sub").mkdir()
    (folder / "sub" / "v1.2.png").write_bytes(b"x")
    (folder / "a.jpg").write_bytes(b"x")
    found = read(folder, "file,labels\n000007,cat\na.jpg,cat\nsub/v1.2,dog\nsub\\..\\b.jpg,dog\n./c.jpg,dog\n")
    assert not found.problems
    relative = [row.image.path.removeprefix(str(folder) + "/") for row in found.splits["train"]]
    # Beside the table goes before images/.
    assert relative == ["JPEGImages/000007.JPG", "a.jpg", "sub/v1.2.png", "images/b.jpg", "images/c.jpg"]
    assert [row.id for row in found.splits["train"]][:2] == ["000007", "a.jpg"]
    assert len(read(folder, "file,labels\nf,cat\n", images=str(folder / "images")).splits["train"]) == 1
    with pytest.raises(UserError, match="no such folder: --images"):
        read(folder, "file,labels\nf,cat\n", images=str(folder / "nowhere"))


def test_headerless_names_without_extension(folder):
    assert names(read(folder, "a,cat\nb,dog\n")) == {"a": {"cat"}, "b": {"dog"}}


@pytest.mark.parametrize("name", ["../../x.jpg", "../outside.jpg", "/etc/passwd", "C:\\x.jpg", "images/../../x.jpg"])
def test_names_that_lead_out_are_refused(folder, name):
    (folder.parent / "outside.jpg").write_bytes(b"x")
    problem = only_problem(read(folder, f"file,labels\na.jpg,cat\n{name},cat\n"))
    assert problem.startswith("labels.csv:3: ") and "leads out of the folder" in problem and "--images" in problem


def test_absolute_names_below_images(folder):
    path = folder / "images" / "a.jpg"
    assert not read(folder, f"file,labels\n{path},cat\n", images=str(folder / "images")).problems
    assert "leads out" in only_problem(read(folder, "file,labels\n/etc/passwd,cat\n", images=str(folder / "images")))


@pytest.mark.parametrize(
    ("rows", "line", "why"),
    [
        ("zz.jpg,cat", 4, "no image 'zz.jpg' in"),
        ("a.jpg,dog", 4, "'a.jpg' is already on labels.csv:2"),
        ("images/a.jpg,dog", 4, "'images/a.jpg' is already on labels.csv:2"),
        ("c.jpg,cat;;dog", 4, "empty label name in 'cat;;dog'"),
        ("c.jpg,cat;", 4, "empty label name"),
        ("c.jpg,cat,dog", 4, "3 columns where the first line has 2"),
        ("c.jpg", 4, "1 columns where the first line has 2"),
        (",cat", 4, "no file name"),
    ],
)
def test_mistakes_name_their_line(folder, rows, line, why):
    found = read(folder, f"file,labels\na.jpg,cat;dog\nb.jpg,dog\n{rows}\nd.jpg,cat\n")
    problem = only_problem(found)
    assert problem.startswith(f"labels.csv:{line}: ") and why in problem
    assert list(names(found)) == ["a.jpg", "b.jpg", "d.jpg"]  # the rest is read


def test_duplicates_across_splits(folder):
    write(folder, "train.csv", "a.jpg,cat\n")
    write(folder, "test.csv", "b.jpg,cat\na.jpg,cat\n")
    assert "test.csv:2: 'a.jpg' is already on train.csv:1" in only_problem(read(folder))


def test_line_numbers_with_quoted_line_breaks(folder):
    found = read(folder, 'file,note,labels\na.jpg,"two\nlines",cat\nzz.jpg,x,cat\n')
    assert only_problem(found).startswith("labels.csv:4: ")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"file": "b.jpg", "labels": ["cat"]', "not valid JSON"),
        ("b.jpg,cat", "not valid JSON"),
        ('["b.jpg"]', "not a JSON object"),
        ('{"labels": ["cat"]}', 'no "file"'),
        ('{"file": "b.jpg"}', 'no "labels"'),
        ('{"file": "b.jpg", "labels": 3}', "labels must be"),
        ('{"file": "b.jpg", "labels": [1]}', "labels must be"),
        ('{"file": "b.jpg", "labels": ["cat", " "]}', "empty label name"),
        ('{"file": "b.jpg", "labels": {"cat": 7}}', "'cat' holds '7'"),
        ('{"file": "b.jpg", "labels": ["cat"], "boxes": 3}', '"boxes" is not a list'),
        ('{"file": "b.jpg", "labels": ["cat"], "boxes": [{"label": "cat"}]}', "a box must be"),
        ('{"file": "b.jpg", "labels": ["cat"], "boxes": [{"label": "dgo", "bbox": [0, 0, 1, 1]}]}', "unknown label"),
        ('{"file": "b.jpg", "labels": ["cat"], "boxes": [{"label": "cat", "bbox": [5, 0, 5, 1]}]}', "xmin >= xmax"),
        ('{"file": "b.jpg", "labels": ["cat"], "boxes": [{"label": "cat", "bbox": [5, 0, 1]}]}', "not four numbers"),
    ],
)
def test_jsonl_mistakes(folder, line, why):
    found = read(folder, '{"file": "a.jpg", "labels": ["cat"]}\n\n' + line + "\n", name="x.jsonl")
    problem = only_problem(found)
    assert problem.startswith("x.jsonl:3: ") and why in problem
    assert list(names(found)) == ["a.jpg"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", r"labels\.csv: the file .* is empty"),
        (b"\n\n", "is empty"),
        (b"image,labels\n", "no rows"),
        (b"image,labels\na.jpg,caf\xe9\n", r"labels\.csv:2: not UTF-8"),
        ("image,labels\n".encode("utf-16"), "not UTF-8"),
        (b'image,labels\na.jpg,"cat\n', "not valid CSV"),
        (b"a.jpg\nb.jpg\n", "1 column and no header line"),
        (b"image,labels\na.jpg,\n", "not one row has a label"),
    ],
)
def test_files_that_cannot_be_read(folder, text, match):
    with pytest.raises(UserError, match=match) as caught:
        read(folder, text)
    assert "\n" not in str(caught.value)


def test_no_such_source(folder):
    with pytest.raises(UserError, match="no such file or folder"):
        read(folder / "nowhere")
    with pytest.raises(UserError, match=r"must be a \.csv"):
        table.read(folder / "images" / "a.jpg")


def test_empty_jsonl(folder):
    with pytest.raises(UserError, match="no rows"):
        read(folder, "\n", name="x.jsonl")


def test_boxes_of_jsonl_and_csv(folder):
    boxes = [{"label": "cat", "bbox": [10, 20, 30.5, 40], "difficult": True}, {"label": "dog", "bbox": [0, 0, 5, 5]}]
    line = json.dumps({"file": "a.jpg", "labels": ["cat", "dog"], "boxes": boxes})
    other = json.dumps({"file": "b.jpg", "labels": ["dog"]})
    found = read(folder, f"{line}\n{other}\n", name="x.jsonl")
    assert found.has_boxes
    first, second = found.splits["train"][0].boxes
    assert first.normalised(80, 61) == {"bbox": [0.25, pytest.approx(10 / 61), 0.5, 0.5], "label": 0, "difficult": True}
    assert (second.label, second.difficult) == (1, False) and found.splits["train"][1].boxes == []
    text = "file,label,xmin,ymin,xmax,ymax,difficult\na,cat,1,2,3,4,1\na.jpg,dog,1,2,3,4,0\n"
    path = write(folder, "boxes.txt", text)
    found = read(folder, "a.jpg,cat;dog\nb.jpg,dog\n", boxes=str(path))
    assert [(box.label, box.corners, box.difficult) for box in found.splits["train"][0].boxes] == [
        (0, (1, 2, 3, 4), True),
        (1, (1, 2, 3, 4), False),
    ]


def test_box_table_mistakes(folder):
    rows = "a.jpg,cat,1,2,3,4\nzz.jpg,cat,1,2,3,4\nb.jpg,cta,1,2,3,4\nc.jpg,cat,3,2,1,4\n"
    path = write(folder, "boxes.txt", "file,label,xmin,ymin,xmax,ymax\n" + rows)
    found = read(folder, "a.jpg,cat\nb.jpg,cat\nc.jpg,cat\n", boxes=str(path))
    assert [problem.line for problem in found.problems] == [3, 4, 5]
    assert "not among the rows" in str(found.problems[0]) and "did you mean 'cat'" in str(found.problems[1])
    assert list(names(found)) == ["a.jpg"]  # an image with a wrong box is left out with it
    with pytest.raises(UserError, match="no column 'xmax'"):
        write(folder, "boxes.txt", "file,label,xmin,ymin,x2,ymax\n")
        read(folder, "a.jpg,cat\n", boxes=str(path))
    with pytest.raises(UserError, match="no such file: --boxes"):
        read(folder, "a.jpg,cat\n", boxes=str(folder / "none"))


@pytest.mark.parametrize("name", ["a\0.jpg", "x\0/a.jpg", "n" * 300 + "/a.jpg"], ids=["nul", "nul in a folder", "long"])
def test_a_name_that_no_disk_can_hold_is_a_missing_image(folder, name):
    found = read(folder, f"file,labels\na.jpg,cat\n{name},dog\n")
    assert "no image" in only_problem(found) and list(names(found)) == ["a.jpg"]


@pytest.mark.parametrize(
    "line, part",
    [
        ('{"file": "b.jpg", "labels": ["cat"], "n": ' + "9" * 5000 + "}", "digits"),
        ('{"file": "b.jpg", "labels": ["cat"], "file": "c.jpg"}', "'file' is there twice"),
        ('{"file": "b.jpg", "labels": {"cat": 1, " cat": 0}}', "'cat' is there twice"),
        ('{"file": "b.jpg", "labels": ["\\ud800"]}', "surrogates"),
        ('{"file": "b.jpg", "labels": ["cat"], "\\uDCFF": 1}', "surrogates"),
        ('{"file": "b.jpg", "labels": ["cat"], "n": ' + "[" * 500 + "]" * 500 + "}", "nested"),
        ('{"file": "b.jpg", "labels": ["cat"], "boxes": [{"label": "cat", "bbox": "1289"}]}', "not four numbers"),
        (
            '{"file": "b.jpg", "labels": ["cat"], "boxes": [{"label": "cat", "bbox": [1, 1, 1' + "0" * 400 + ", 3]}]}",
            "not four numbers",
        ),
    ],
    ids=[
        "huge number",
        "key twice",
        "class twice",
        "surrogate",
        "surrogate key",
        "deep",
        "text as box",
        "infinite box",
    ],
)
def test_json_that_python_takes_and_we_do_not(folder, line, part):
    found = read(folder, '{"file": "a.jpg", "labels": ["cat"]}\n' + line + "\n", name="labels.jsonl")
    assert part in only_problem(found) and list(names(found)) == ["a.jpg"]


def test_a_bad_split_name_makes_no_empty_split(folder):
    found = read(folder, "file,labels,split\na.jpg,cat,train\nb.jpg,dog,../x\n" + f"c.jpg,cat,{'s' * 300}\n")
    assert list(found.splits) == ["train"] and [problem.line for problem in found.problems] == [3, 4]


def test_no_classes_beside_mistakes(folder):
    with pytest.raises(UserError, match="no classes to learn"):
        read(folder, "file,labels\na.jpg,\nb.jpg,;\n")


def test_a_hundred_thousand_names_take_no_time(folder):
    many = [f"n{i}" for i in range(100_000)]
    with pytest.raises(UserError, match="two columns are named 'n99999'"):
        read(folder, ",".join(["file", *many, many[-1]]) + "\n")
    pairs = ", ".join(f'"{name}": 1' for name in [*many, many[-1]])
    assert "'n99999' is there twice" in only_problem(read(folder, "{" + pairs + "}\n", name="labels.jsonl"))
