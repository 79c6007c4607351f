from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from softprompt import data
from softprompt.errors import DataError

ROWS = [{"text": "the team won", "label": "sports"}, {"text": "it fell, again", "label": "business"}]


def file(tmp_path, name: str, content: str | bytes):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet(path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_json_lines(tmp_path):
    path = file(tmp_path, "rows.jsonl", "\n".join(map(json.dumps, ROWS)))
    rows = data.read(path)
    assert rows == ROWS
    assert [row.where for row in rows] == [f"{path}, line 1", f"{path}, line 2"]


def test_csv_and_tsv(tmp_path):
    content = 'text,label\nthe team won,sports\n"it fell, again",business\n'
    assert data.read(file(tmp_path, "rows.csv", content)) == ROWS
    assert (
        data.read(str(file(tmp_path, "rows.TSV", "text\tlabel\nthe team won\tsports\nit fell, again\tbusiness")))
        == ROWS
    )


def test_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    parquet(path, [*ROWS, {"text": "x", "label": None}])
    rows = data.read(path)
    assert rows == [*ROWS, {"text": "x", "label": None}]
    assert rows[2].where == f"{path}, row 3"


def test_blank_lines_are_passed_over_and_counted(tmp_path):
    rows = data.read(file(tmp_path, "rows.jsonl", '\n{"text": "a"}\n  \n\r\n{"text": "b"}\n\n'))
    assert [(row["text"], row.where.rpartition(" ")[2]) for row in rows] == [("a", "2"), ("b", "5")]
    rows = data.read(file(tmp_path, "rows.csv", "text,label\na,x\n\nb,y\n"))
    assert [(row["text"], row.where.rpartition(" ")[2]) for row in rows] == [("a", "2"), ("b", "4")]


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", '{"text": "é"}'), ("a.csv", "text\né"), ("a.tsv", "text\né")]
)
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, name, content):
    assert data.read(file(tmp_path, name, b"\xef\xbb\xbf" + content.encode())) == [{"text": "é"}]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c", "\x1c"])
def test_a_line_ends_at_a_line_break_alone(tmp_path, separator):
    text = f"one{separator}two"
    content = json.dumps({"text": text}, ensure_ascii=separator < " ")
    assert data.read(file(tmp_path, "rows.jsonl", content + "\n" + content)) == [{"text": text}] * 2
    assert data.read(file(tmp_path, "rows.csv", f'text\n"{text}"\n"{text}"\n')) == [{"text": text}] * 2


def test_a_csv_field_may_hold_lines_and_be_long(tmp_path):
    text = 'first "line"\nsecond, ' + "long " * 100_000
    quoted = text.replace('"', '""')
    rows = data.read(file(tmp_path, "rows.csv", f'text,label\n"{quoted}",a\nx,b\n'))
    assert rows == [{"text": text, "label": "a"}, {"text": "x", "label": "b"}]


JSON, CSV = "rows.jsonl", "rows.csv"
BAD = {
    "no JSON": (JSON, '{"a": 1}\ntext\n', r"rows.jsonl, line 2: it is no JSON: Expecting value at character 1"),
    "half an object": (JSON, '{"a": 1}\n\n{"a": ', r"line 3: it is no JSON"),
    "an array": (JSON, '["a"]', "line 1: it is a JSON array, not an object"),
    "a string": (JSON, '"a"', "line 1: it is a JSON string"),
    "a number": (JSON, "1", "line 1: it is a JSON number"),
    "true": (JSON, "true", "line 1: it is a JSON boolean"),
    "null": (JSON, "null", "line 1: it is a JSON null"),
    "endless brackets": (JSON, "[" * 100_000, "line 1: it is no JSON"),
    "endless digits": (JSON, '{"a": ' + "1" * 10_000 + "}", "line 1: it is no JSON"),
    "too few columns": (CSV, "a,b\n1,2\n3\n", "rows.csv, line 3: it does not have the 2 columns"),
    "too many columns": (CSV, "a,b\n1,2,3\n", "line 2: it does not have the 2 columns"),
    "an open quote": (CSV, 'a,b\n1,"2\n', "it is no CSV"),
    "text behind a quote": (CSV, 'a,b\n"1"x,2\n', "line 2: it is no CSV"),
    "a column twice": (CSV, "a,b,a\n1,2,3\n", "line 1: a column stands twice: 'a', 'b', 'a'"),
    "no byte": (JSON, "", "there is no row in it"),
    "blank lines": (JSON, "\n\n", "there is no row in it"),
    "no byte of CSV": (CSV, "", "there is no row in it"),
    "a head alone": (CSV, "a,b\n", "there is no row in it"),
    "Latin-1": (JSON, '{"text": "é"}'.encode("latin-1"), "it is not UTF-8.*Save it as UTF-8"),
    "Latin-1 CSV": (CSV, "text\né\n".encode("latin-1"), "it is not UTF-8"),
    "no Parquet": ("rows.parquet", "text", "it is no Parquet"),
    "no ending": ("rows", "text", "no ending is not read. Give .jsonl, .csv, .tsv, .parquet"),
    "an unknown ending": ("rows.xlsx", "text", ".xlsx is not read"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path, name, content, message):
    path = file(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as refusal:
        data.read(path)
    assert str(refusal.value).startswith(str(path))


def test_half_a_parquet_file_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    parquet(path, ROWS * 100)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"rows\.parquet"):
        data.read(path)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="it is a folder"):
        data.read(tmp_path)


@pytest.mark.parametrize("name", ["missing.jsonl", "folder/missing.csv", "missing", "x" * 5000, "a\0b.jsonl"])
def test_a_missing_file_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as refusal:
        data.read(name)
    assert "no such file" in str(refusal.value) or "cannot be read" in str(refusal.value)


@pytest.mark.parametrize("name", ["owner/name", "owner/name:config", "owner/name[test]"])
def test_a_dataset_that_cannot_be_had_is_an_error_and_no_traceback(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(DataError, match="the Hub gives no such dataset"):
        data.read(name)


def test_class_numbers_of_a_dataset_are_given_their_names(monkeypatch):
    import datasets

    names = datasets.ClassLabel(names=["O", "PER"])
    features = {"words": datasets.List(datasets.Value("string")), "tags": datasets.List(names), "kind": names}
    held = {"words": [["the", "team"], ["x"]], "tags": [[0, 1], [-100]], "kind": [1, -1]}
    made = datasets.Dataset.from_dict(held, datasets.Features(features))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: made)
    assert data.read("owner/name[test]") == [
        {"words": ["the", "team"], "tags": ["O", "PER"], "kind": "PER"},
        {"words": ["x"], "tags": [-100], "kind": -1},  # no class has such a number
    ]
