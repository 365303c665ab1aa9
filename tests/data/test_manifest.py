"""A table that lists clips."""

import json

import pytest

from video_diffusion_pytorch.data.manifest import Clip, read_labels, read_manifest


@pytest.fixture
def table(tmp_path):
    """Writes a table; the clips `a.mp4`, `b.mp4` and `sub/c.gif` are there."""
    for name in ("a.mp4", "b.mp4", "sub/c.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def write(text, name="clips.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_csv(table, tmp_path):
    path = table(
        "path,caption,label,start,end,split,other\n"
        'a.mp4,"a cat, asleep",cat,1.5,2,train,x\n'
        "b.mp4,,dog,,,val,\n"
        "sub/c.gif, été ,,,0.5,train,\n",
    )
    clips = read_manifest(path, tmp_path)
    assert clips == [
        Clip(tmp_path / "a.mp4", "a cat, asleep", "cat", 1.5, 2.0),
        Clip(tmp_path / "sub/c.gif", "été", None, None, 0.5),
    ]
    assert [clip.is_whole for clip in clips] == [False, False]
    assert read_manifest(path, tmp_path, "val") == [Clip(tmp_path / "b.mp4", label="dog")]
    assert len(read_manifest(path, tmp_path, None)) == 3


def test_labels_of_all_splits(table, tmp_path):
    path = table("path,label,split\na.mp4,cat,train\ngone.mp4,dog,test\nb.mp4,,val\n,bird,val\n")
    assert read_labels(path, tmp_path) == [
        Clip(tmp_path / "a.mp4", label="cat"),
        Clip(tmp_path / "gone.mp4", label="dog"),
        Clip(tmp_path / "b.mp4"),
    ]
    with pytest.raises(FileNotFoundError, match=r"a manifest at .*x.csv, found none; check the"):
        read_labels(tmp_path / "x.csv", tmp_path)


def test_rows_of_no_split(table, tmp_path):
    path = table("path,split\na.mp4,train\nb.mp4,\n")
    assert [clip.path.name for clip in read_manifest(path, tmp_path)] == ["a.mp4"]
    path = table("path,split\na.mp4,\nb.mp4,\n")
    assert [clip.path.name for clip in read_manifest(path, tmp_path)] == ["a.mp4", "b.mp4"]


def test_jsonl(table, tmp_path):
    rows = [
        {"path": "a.mp4", "caption": "a cat", "label": 3, "start": 1, "length": [1, 2]},
        {"path": str(tmp_path / "b.mp4"), "caption": None},
    ]
    path = table("\n\n".join(map(json.dumps, rows)) + "\n", "clips.jsonl")
    assert read_manifest(path, tmp_path) == [
        Clip(tmp_path / "a.mp4", "a cat", "3", 1.0),
        Clip(tmp_path / "b.mp4"),
    ]


def test_a_spreadsheets_byte_order_mark(table, tmp_path):
    path = table("path\r\na.mp4\r\n", encoding="utf-8-sig")
    assert read_manifest(path, tmp_path) == [Clip(tmp_path / "a.mp4")]


def test_missing_table(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a manifest at .*x.csv, found none; check the"):
        read_manifest(tmp_path / "x.csv", tmp_path)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("path\na.mp4\n", "clips.tsv", r"must end in .csv or .jsonl, got .*; write it as"),
        ("path\n", "clips.csv", r"clips.csv must list clips, got no row; correct the table"),
        (
            "path,split\na.mp4,test\nb.mp4,val\n",
            "clips.csv",
            r"of the split 'train', got only those of 'test', 'val'; correct the table",
        ),
        ("file,x\na.mp4,1\n", "clips.csv", "line 2: expected a path, got none among file, x; the"),
        ("path,end\na.mp4,soon\n", "clips.csv", "line 2: end must be a number .* got 'soon'; cor"),
        ("path,start\na.mp4,-1\n", "clips.csv", "line 2: start must be a number .* got '-1'; cor"),
        ("path,end\na.mp4,nan\n", "clips.csv", "line 2: end must be a number .* got 'nan'; corre"),
        ("path,start,end\na.mp4,2,1\n", "clips.csv", "end must be later than start, got 2 to 1; c"),
        ("path,end\na.mp4,0\n", "clips.csv", "end must be later than start, got 0 to 0; correct"),
        ('{"path": "a.mp4"}\n{', "clips.jsonl", "line 2: expected a JSON object, got a line that"),
        (
            "\n" + "[" * 10**5,
            "clips.jsonl",
            "line 2: expected a JSON object, got a line that is no",
        ),
        (
            '{"path": ' + "1" * 5000 + "}",
            "clips.jsonl",
            "line 1: expected a JSON object, got a line",
        ),
        ('["a.mp4"]', "clips.jsonl", "line 1: expected a JSON object, got list; write"),
        ("path\n" + '"' + "a" * 200_000 + '"', "clips.csv", "comma-separated values, got .*; wri"),
    ],
)
def test_mistakes_in_the_table(table, tmp_path, text, name, message):
    with pytest.raises(ValueError, match=message):
        read_manifest(table(text, name), tmp_path)


def test_missing_clip(table, tmp_path):
    message = r"clips.csv, line 3: expected a clip at .*z.mp4, found none; paths are relative to"
    with pytest.raises(FileNotFoundError, match=message):
        read_manifest(table("path\na.mp4\nz.mp4\n"), tmp_path)


def test_other_encodings(table, tmp_path):
    with pytest.raises(ValueError, match=r"must be text in UTF-8, got .*; save it as UTF-8"):
        read_manifest(table("path,caption\na.mp4,été\n", encoding="latin-1"), tmp_path)
