"""Manifests: columns, cells, names of files, splits and labels."""

import json
import os
import unicodedata

import pytest

from video_diffusion_pytorch.data.manifest import Clip, Manifest


def read_manifest(path, folder, split="train", **options):
    return Manifest(path, folder, **options).clips(split)


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
    assert Manifest(path, tmp_path).labels() == [
        Clip(tmp_path / "a.mp4", label="cat"),
        Clip(tmp_path / "gone.mp4", label="dog"),
        Clip(tmp_path / "b.mp4"),
    ]


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


@pytest.mark.parametrize("name", ["x.csv", "folder.csv", "pipe.csv"])
def test_missing_table(tmp_path, name):
    (tmp_path / "folder.csv").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.csv")
    message = f"expected a table at {name} or .*{name}, found no file; correct manifest"
    with pytest.raises(FileNotFoundError, match=message):
        read_manifest(name, tmp_path)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("path\n", "clips.csv", r"clips.csv must list clips of the split 'train', got"),
        (
            "path,split\na.mp4,test\nb.mp4,val\n",
            "clips.csv",
            r"list clips of the split 'train', got \['test', 'val'\]; name",
        ),
        (
            "name,x\na.mp4,1\n",
            "clips.csv",
            "one column path in its first line, .* got name, x; rename",
        ),
        (
            "a.mp4,a cat\nb.mp4,\n",
            "clips.csv",
            "one column path in its first line, .* got a.mp4, a cat;",
        ),
        ("", "clips.csv", "one column path in its first line, .* got none; rename"),
        ("path,x\n,1\n", "clips.csv", "line 2: expected a path, got none; write it"),
        (
            "path,x\nNaN,1\n",
            "clips.csv",
            "line 2: expected a path, got none; write it",
        ),
        ("file,video\na.mp4,b.mp4\n", "clips.csv", "one column path .* got file and video; rename"),
        ("path,path\na.mp4,b.mp4\n", "clips.csv", "one column path .* got path and path; rename"),
        (
            "path,text,prompt\na.mp4,x,y\n",
            "clips.csv",
            "one column caption .* got text and prompt; re",
        ),
        ("path,end\na.mp4,soon\n", "clips.csv", r"line 2: start and .* \[None, 'soon'\]; corr"),
        ("path,start\na.mp4,-1\n", "clips.csv", r"start and end must be .* \['-1', None\]; cor"),
        ("path,start\na.mp4,inf\n", "clips.csv", r"start and end must be .* \['inf', None\]; co"),
        ("path,end\na.mp4,1_0\n", "clips.csv", r"start and end must be .* \[None, '1_0'\]; corr"),
        ('path,end\na.mp4,"0,5"\n', "clips.csv", r"start and end must be .* \[None, '0,5'\]; co"),
        ("path,end\na.mp4,8:30\n", "clips.csv", r"with manifest_columns=\{'end': None\}"),
        ("path,start,end\na.mp4,2,1\n", "clips.csv", r"start < end, got \['2', '1'\]; correct"),
        ("path,end\na.mp4,0\n", "clips.csv", r"start < end, got \[None, '0'\]; correct them"),
        ('{"path": "a.mp4"}\n{', "clips.jsonl", "line 2: expected a JSON object, got '{'; write"),
        (
            "\n" + "[" * 10**5,
            "clips.jsonl",
            r"line 2: expected a JSON object, got '\[\[\[.*; write",
        ),
        ('{"path": ' + "1" * 5000 + "}", "clips.jsonl", "line 1: expected a JSON object, got"),
        ('["a.mp4"]', "clips.jsonl", r"line 1: expected a JSON object, got '\[\"a.mp4\"\]'; write"),
        ("path\n" + '"' + "a" * 200_000 + '"', "clips.csv", "comma-separated values, got .*; wri"),
    ],
)
def test_mistakes_in_the_table(table, tmp_path, text, name, message):
    with pytest.raises(ValueError, match=message):
        read_manifest(table(text, name), tmp_path)


def test_a_missing_folder_is_named_before_the_table(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder of videos at .*gone, found none; check"):
        read_manifest("clips.csv", tmp_path / "gone")


def test_missing_clip(table, tmp_path):
    message = r"clips.csv, line 3: expected a clip at .*z.mp4, found none, .* subfolder; corr"
    with pytest.raises(FileNotFoundError, match=message):
        read_manifest(table("path\na.mp4\nz.mp4\n"), tmp_path)


def test_other_encodings(table, tmp_path):
    with pytest.raises(ValueError, match=r"must be text in UTF-8, got .*; save it as UTF-8"):
        read_manifest(table("path,caption\na.mp4,été\n", encoding="cp1252"), tmp_path)
    with pytest.raises(
        ValueError, match="in UTF-8, got zero bytes, as in UTF-16 without a byte or"
    ):
        read_manifest(table("path\na.mp4\n", encoding="utf-16-le"), tmp_path)


# As pandas and spreadsheets write them

# of one frame of data: a caption with a comma, a label that is missing, booleans and decimals
PANDAS = {
    "clips.csv": ',path,caption,label,end\n0,a.mp4,"a cat, asleep",2.0,0.5\n1,b.mp4,,,\n'
    "2,sub/c.gif,été,10.0,1e-07\n",
    "quoted.csv": '"","path","caption","label","end"\n"0","a.mp4","a cat, asleep","2.0","0.5"\n'
    '"1","b.mp4","","",""\n"2","sub/c.gif","été","10.0","1e-07"\n',
    "na_rep.csv": 'path,caption,label,end\r\na.mp4,"a cat, asleep",2.0,0.5\r\nb.mp4,NaN,NaN,NaN\r\n'
    "sub/c.gif,été,10.0,1e-07\r\n",
    "decimal.csv": "path;caption;label;end\na.mp4;a cat, asleep;2,0;0,5\nb.mp4;;;\n"
    "sub/c.gif;été;10,0;1e-07\n",
    "old_mac.csv": "path;caption;label;end\ra.mp4;a cat, asleep;2,0;0,5\rb.mp4;;;\r"
    "sub/c.gif;été;10,0;1e-07\r",
    "clips.tsv": "\tpath\tcaption\tlabel\tend\n0\ta.mp4\ta cat, asleep\t2.0\t0.5\n1\tb.mp4\t\t\t\n"
    "2\tsub/c.gif\tété\t10.0\t1e-07\n",
    "tabs.csv": "\tpath\tcaption\tlabel\tend\n0\ta.mp4\ta cat, asleep\t2.0\t0.5\n1\tb.mp4\t\t\t\n"
    "2\tsub/c.gif\tété\t10.0\t1e-07\n",
    "clips.jsonl": '{"path":"a.mp4","caption":"a cat, asleep","label":2.0,"end":0.5}\n'
    '{"path":"b.mp4","caption":null,"label":null,"end":NaN}\n'
    '{"path":"sub\\/c.gif","caption":"\\u00e9t\\u00e9","label":10.0,"end":0.0000001}\n',
    "by_hand.csv": '\n path , caption , label , end\n\na.mp4 , "a cat, asleep" , 2 , 0.5\n'
    "b.mp4,None,N/A\n,,,\n sub/c.gif, été, 10, 1e-7,\n",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", PANDAS)
def test_the_same_table_in_many_forms(table, tmp_path, name, encoding):
    path = table(PANDAS[name], name, encoding)
    assert read_manifest(path, tmp_path) == [
        Clip(tmp_path / "a.mp4", "a cat, asleep", "2", None, 0.5),
        Clip(tmp_path / "b.mp4"),
        Clip(tmp_path / "sub/c.gif", "été", "10", None, 1e-7),
    ]
    assert [clip.label for clip in Manifest(path, tmp_path).labels()] == ["2", None, "10"]


@pytest.mark.parametrize("missing", ["nan", "NaN", "None", "NULL", "null", "NA", "N/A", "<NA>"])
def test_words_for_a_missing_cell(table, tmp_path, missing):
    text = f"path,caption,label,start,end\na.mp4,{missing},{missing},{missing},{missing}\n"
    assert read_manifest(table(text), tmp_path) == [Clip(tmp_path / "a.mp4")]
    row = {"path": "a.mp4", "caption": missing, "label": missing, "start": None, "end": missing}
    path = table(json.dumps(row), "clips.jsonl")
    assert read_manifest(path, tmp_path) == [Clip(tmp_path / "a.mp4")]
    # what only looks like it is a word
    assert read_manifest(table("path,label\na.mp4,none\n"), tmp_path)[0].label == "none"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["0.0", "10.0", "2"], ["0", "10", "2"]),
        (["1.0", "1.5", "2.0"], ["1.0", "1.5", "2.0"]),
        (["2.0", "v3", "1"], ["2.0", "v3", "1"]),
        (['"1,000"', "2", "3"], ["1,000", "2", "3"]),
    ],
)
def test_whole_labels_are_written_without_decimals(table, tmp_path, labels, expected):
    path = table("path,label\n" + "".join(f"a.mp4,{label}\n" for label in labels))
    assert [clip.label for clip in read_manifest(path, tmp_path)] == expected


@pytest.mark.parametrize(
    "text",
    [
        "path,caption\na.mp4,x\nb.mp4,a whale, breaching\n",
        "path,caption,\na.mp4,x\nb.mp4,a whale, breaching\n",
        "path,caption,label\na.mp4,x\nb.mp4,a whale, breaching,whale\n",
        "path;caption\na.mp4;x\nb.mp4;a whale; breaching\n",
    ],
)
def test_more_cells_than_columns(table, tmp_path, text):
    message = r"line 3: expected at most \d cells, .* got \d; put cells with a '[,;]' in them betw"
    with pytest.raises(ValueError, match=message):
        read_manifest(table(text), tmp_path)


@pytest.mark.parametrize("rest", ['"a whale\nb.mp4,a dog\n', '"a" whale\n', '"a\nb.mp4,"c"\n'])
def test_quotes_that_swallow_rows(table, tmp_path, rest):
    message = r"clips.csv, line 3: expected comma-separated values, got .*; write quotes \(\"\) ar"
    with pytest.raises(ValueError, match=message):
        read_manifest(table(f"path,caption\na.mp4,x\na.mp4,{rest}"), tmp_path)


def test_quotes_within_and_lines_within(table, tmp_path):
    path = table('path,caption\na.mp4,"a ""cat"", in\ntwo lines"\nb.mp4,a 5" pipe\nz.mp4,x\n')
    with pytest.raises(FileNotFoundError, match="line 5: expected a clip at"):
        read_manifest(path, tmp_path)
    (tmp_path / "z.mp4").touch()
    captions = [clip.caption for clip in read_manifest(path, tmp_path)]
    assert captions == ['a "cat", in\ntwo lines', 'a 5" pipe', "x"]


@pytest.mark.parametrize("role", ["path", "caption", "label", "start", "split"])
@pytest.mark.parametrize(("value", "kind"), [(["a", "b"], "list"), ({"en": "a"}, "dict")])
def test_one_text_where_a_text_belongs(table, tmp_path, role, value, kind):
    rows = [{"path": "b.mp4"}, {"path": "a.mp4", role: value}]
    path = table("\n".join(map(json.dumps, rows)), "clips.jsonl")
    message = rf"line 2: {role} must be one text or number, got a {kind}, .*; write one"
    with pytest.raises(ValueError, match=message):
        read_manifest(path, tmp_path, None)
    if role in ("caption", "label"):  # of no concern where it is not wanted
        assert len(read_manifest(path, tmp_path, columns={role: None})) == 2


# Columns


@pytest.mark.parametrize(
    "name", ["Path", "FileName", "file name", "VIDEO_PATH", "clip", " File-Path"]
)
def test_usual_names_of_the_path(table, tmp_path, name):
    assert read_manifest(table(f"x,{name}\n1,a.mp4\n"), tmp_path) == [Clip(tmp_path / "a.mp4")]


def test_usual_names_of_other_columns(table, tmp_path):
    text = "Video,Prompt,Class,Start Time,END_TIME,Subset\na.mp4,a cat,cat,1,2,Train\n"
    expected = [Clip(tmp_path / "a.mp4", "a cat", "cat", 1.0, 2.0)]
    assert read_manifest(table(text), tmp_path) == expected
    # the exact name comes first
    text = "file,path,PATH,label,class\nx,a.mp4,y,cat,z\n"
    assert read_manifest(table(text), tmp_path) == [Clip(tmp_path / "a.mp4", label="cat")]


def test_the_list_of_kinetics(table, tmp_path):
    path = table("label,youtube_id,time_start,time_end,split\nhula hooping,a,84,94,validate\n")
    clips = read_manifest(path, tmp_path, "val", columns={"path": "youtube_id"})
    assert clips == [Clip(tmp_path / "a.mp4", None, "hula hooping", 84.0, 94.0)]


@pytest.mark.parametrize("name", ["clips.txt", "clips.csv"])
@pytest.mark.parametrize("header", ["", "path label\n"])
def test_cells_between_spaces(table, tmp_path, name, header):
    # the lists of UCF101
    path = table(header + "sub/c.gif 1\na.mp4 2\n", name)
    message = (
        r"must have one column path in its first line, with commas, semicolons or tabs between .*, "
        r"got (sub/c.gif 1|path label); rename a column"
    )
    with pytest.raises(ValueError, match=message):
        read_manifest(path, tmp_path)


def test_columns_that_are_chosen(table, tmp_path):
    path = table("ID,path,note,start,Set\na.mp4,x,a cat,8:30,A\nb.mp4,x,a dog,9:30,B\n")
    columns = {"path": "id", "caption": "note", "split": "Set", "start": None}
    clips = read_manifest(path, tmp_path, "b", columns=columns)
    assert clips == [Clip(tmp_path / "b.mp4", "a dog")]
    with pytest.raises(
        ValueError,
        match=r"column Nam .* got ID, path, note, start, Set; correct .* name in manifest_columns$",
    ):
        read_manifest(path, tmp_path, columns={"path": "Nam"})
    with pytest.raises(
        ValueError, match=r"manifest_columns must be .* by path, .* got 'file': 'ID'; give"
    ):
        read_manifest(path, tmp_path, columns={"file": "ID"})


def test_numbers(table, tmp_path):
    text = "path,EF,ESV,ok,split\na.mp4, 55.25 ,1e-7,True,train\nb.mp4,,x,False,val\n"
    [clip] = read_manifest(table(text), tmp_path, numbers=["ESV", "ef", "ok"])
    assert clip == Clip(tmp_path / "a.mp4", numbers=(1e-7, 55.25, 1.0))
    text = "path;EF\na.mp4;55,25\n"
    assert read_manifest(table(text), tmp_path, numbers=["EF"])[0].numbers == (55.25,)
    text = '{"path": "a.mp4", "EF": 3}\n{"path": "b.mp4", "EF": true, "ESV": 1}\n'
    clips = read_manifest(table(text, "clips.jsonl"), tmp_path, numbers=["EF"])
    assert [clip.numbers for clip in clips] == [(3.0,), (1.0,)]


@pytest.mark.parametrize(("first", "second"), [("1,5", "1.234"), ("1.5", "2,5")])
@pytest.mark.parametrize("column", ["EF", "end"])
def test_decimal_commas_and_points_in_one_table(table, tmp_path, first, second, column):
    path = table(f"path;note;{column}\na.mp4;1,2.3;{first}\nb.mp4;x;{second}\n")
    numbers = [] if column == "end" else ["EF"]
    message = r"line 3: decimal marks must be commas or points, .* got '.,5' and '1\.\d+'; write"
    with pytest.raises(ValueError, match=message):
        read_manifest(path, tmp_path, numbers=numbers)
    # in other columns, and in what is no number, they may be
    path = table(f"path;note;{column}\na.mp4;1.2;0,5\nb.mp4;1,2;1,5\n")
    assert len(read_manifest(path, tmp_path, numbers=numbers)) == 2
    path = table("path;EF\na.mp4;1.5\nb.mp4;1.234\n")
    clips = read_manifest(path, tmp_path, numbers=["EF"])
    assert [clip.numbers for clip in clips] == [(1.5,), (1.234,)]


@pytest.mark.parametrize("cell", ["", "nan", "inf", "1e39", "x", "1_000", '"1,234"', "50%"])
def test_cells_that_are_not_numbers(table, tmp_path, cell):
    got = repr(cell.strip('"')) if cell not in ("", "nan") else "'none'"
    message = f"line 3: EF must be a finite number, got {got}; correct it, or remove the row"
    with pytest.raises(ValueError, match=message):
        read_manifest(table(f"path,EF\na.mp4,1\nb.mp4,{cell}\n"), tmp_path, numbers=["EF"])


# Names of files


def test_names_below_and_without_endings(table, tmp_path):
    for name in ("deep/d.nii.gz", "e.npy", "e.txt", "e.png", "e.mp4", "f/1.png", "f/2.png"):
        (tmp_path / "sub" / name).parent.mkdir(exist_ok=True)
        table("", f"sub/{name}")
    path = table("path\na\nc.gif\nc\nsub\\c.gif\ndeep\\d\nd.nii.gz\ne\ne.npy\nf\n")
    found = [clip.path.relative_to(tmp_path).as_posix()
             for clip in read_manifest(path, tmp_path, exts="nii.gz")]  # fmt: skip
    deep = "sub/deep/d.nii.gz"
    assert found == [
        *["a.mp4", "sub/c.gif", "sub/c.gif", "sub/c.gif", deep, deep, "sub/e.mp4", "sub/e.npy"],
        "sub/f",
    ]


def test_a_name_of_two_files(table, tmp_path):
    table("", "sub/a.avi")
    message = r"line 2: expected one clip of the name a, got 2, .*a.mp4 and .*a.avi; write the path"
    with pytest.raises(ValueError, match=message):
        read_manifest(table("path\na\n"), tmp_path)
    assert read_manifest(table("path\nsub/a\n"), tmp_path) == [Clip(tmp_path / "sub/a.avi")]
    # a path is what it is, and what is excluded is not looked into
    assert read_manifest(table("path\na.mp4\n"), tmp_path) == [Clip(tmp_path / "a.mp4")]
    clips = read_manifest(table("path\na\n"), tmp_path, exclude=[tmp_path / "sub"])
    assert clips == [Clip(tmp_path / "a.mp4")]


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFD", "NFC"), ("NFC", "NFD")])
@pytest.mark.parametrize("name", ["café.mp4", "café", "Zoë/café.mp4"])
def test_accents_of_either_form(table, tmp_path, on_disk, in_table, name):
    file = tmp_path / unicodedata.normalize(on_disk, "Zoë/café.mp4")
    file.parent.mkdir()
    file.touch()
    (tmp_path / "cafe.mp4").touch()
    path = table(unicodedata.normalize(in_table, f"Vidéo\n{name}\n"))
    columns = {"path": unicodedata.normalize(on_disk, "Vidéo")}
    assert read_manifest(path, tmp_path, columns=columns) == [Clip(file)]


def test_a_table_in_the_folder_of_the_clips(table, tmp_path):
    table("path\na.mp4\n")
    assert len(read_manifest("clips.csv", tmp_path)) == 1


# Splits and labels


@pytest.mark.parametrize(
    ("there", "split"),
    [("TRAIN", "train"), ("train", "TRAIN"), ("VAL", "val"), ("Validation", "val"),
     ("val", "validation"), ("valid", "val"), ("Testing", "test"), ("1", 1),
     ("validate", "val")],
)  # fmt: skip
def test_splits_in_any_case(table, tmp_path, there, split):
    path = table(f"path,Split\na.mp4,{there}\nb.mp4,other\n")
    assert read_manifest(path, tmp_path, split) == [Clip(tmp_path / "a.mp4")]


def test_a_split_of_that_name_comes_before_another_word_for_it(table, tmp_path):
    path = table("path,split\na.mp4,validation\nb.mp4,VAL\n")
    assert read_manifest(path, tmp_path, "val") == [Clip(tmp_path / "b.mp4")]


@pytest.mark.parametrize("cells", [("train", "test"), ("Training", "VAL"), ("", "train", "valid")])
def test_splits_in_a_column_of_another_name(table, tmp_path, cells):
    path = table("path,Set\n" + "".join(f"a.mp4,{cell}\n" for cell in cells))
    message = r"must have a column split, got splits in 'Set'; name it in manifest_columns="
    with pytest.raises(ValueError, match=message):
        read_manifest(path, tmp_path)
    assert len(read_manifest(path, tmp_path, columns={"split": "Set"})) == 1
    assert len(read_manifest(path, tmp_path, columns={"split": None})) == len(cells)
    assert len(read_manifest(path, tmp_path, None)) == len(cells)


@pytest.mark.parametrize("cells", [("train", "bus"), ("test", "test"), ("", "")])
def test_other_columns_are_no_splits(table, tmp_path, cells):
    path = table("path,Set\n" + "".join(f"a.mp4,{cell}\n" for cell in cells))
    assert len(read_manifest(path, tmp_path)) == 2


def test_a_split_of_a_table_without_splits(table, tmp_path):
    path = table("path\na.mp4\n")
    assert len(read_manifest(path, tmp_path, "Train")) == 1
    assert len(read_manifest(path, tmp_path, None)) == 1
    with pytest.raises(ValueError, match=r"must list clips of the split 'val', got \[\]; n"):
        read_manifest(path, tmp_path, "val")


def test_names_too_long_for_the_file_system(table, tmp_path):
    path = table(f"path\na.mp4\n{'x' * 5000}.mp4\n")
    with pytest.raises(FileNotFoundError, match=r"line 3: expected a clip at .*, found none, and"):
        read_manifest(path, tmp_path)
