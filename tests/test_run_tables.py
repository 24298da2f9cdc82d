"""Tables in files: by suffix, whole or not at all."""

import sys

import numpy as np
import pandas as pd
import pytest

from keras_lmmvae.runs.tables import read_table, write_table

FRAME = pd.DataFrame({"a": [0.1, np.nan], "key": ["x", None], "n": [1, 2]})


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_what_is_written_is_read(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    file = tmp_path / "deep" / f"table{suffix}"
    write_table(FRAME, file)
    pd.testing.assert_frame_equal(read_table(file), FRAME, check_dtype=False)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_index_becomes_columns(tmp_path):
    index = pd.MultiIndex.from_tuples([("x", 1)], names=["subject", "coefficient"])
    write_table(pd.DataFrame({0: [2.0]}, index), tmp_path / "t.csv", index=True)
    assert (tmp_path / "t.csv").read_text() == "subject,coefficient,0\nx,1,2.0\n"


def test_other_suffixes(tmp_path):
    for act in (read_table, lambda file: write_table(FRAME, file)):
        with pytest.raises(ValueError, match=r"'\*.csv' or '\*.parquet'. Received: file="):
            act(tmp_path / "table.xlsx")


@pytest.mark.parametrize("text", [None, "", 'a\n"b', "a,b\n1,2\n1,2,3\n"])
def test_unreadable_tables(tmp_path, text):
    """A missing, empty or broken file: one line that names it."""
    file = tmp_path / "t.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match="The table cannot be read: .*Received: file=") as caught:
        read_table(file)
    assert "\n" not in str(caught.value)


def test_table_without_rows(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="The table has no rows"):
        read_table(tmp_path / "t.csv")


def test_two_columns_of_one_name(tmp_path):
    frame = pd.concat([FRAME, FRAME[["a"]]], axis=1)
    with pytest.raises(ValueError, match=r"two columns of one name.*Received: columns=\['a'\]"):
        write_table(frame, tmp_path / "t.csv")


def test_failed_writing_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "t.csv"
    write_table(FRAME, file)
    before = file.read_text()

    def fail(self, path, **options):
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    with pytest.raises(OSError, match="disk full"):
        write_table(FRAME, file)
    assert file.read_text() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_parquet_needs_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install keras-lmmvae\[parquet\]"):
        read_table(tmp_path / "t.parquet")
