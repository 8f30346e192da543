import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from stages.artifacts.table_csv import write_table


def test_text_that_a_spreadsheet_would_compute_stays_text(tmp_path: Path) -> None:
    rows = [("=1+1", -1.5), ("+cmd|' /C calc'!A0", 2), ("@SUM(A1)", 3), ("-2", 4), ("\tx", 5), ("a=b", 6)]
    write_table(tmp_path / "table.csv", ["text", "number"], rows)
    written = (tmp_path / "table.csv").read_bytes().decode()
    assert written == "text,number\n'=1+1,-1.5\n'+cmd|' /C calc'!A0,2\n'@SUM(A1),3\n'-2,4\n'\tx,5\na=b,6\n"


SCRIPT_PARTS = ["<", "/", "!", "--", "script", "SCRIPT", ">", "x", "=", '"', "\u200b"]


@given(st.lists(st.sampled_from(SCRIPT_PARTS), max_size=8).map("".join))
def test_text_can_neither_end_nor_change_a_script_that_holds_it(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder) / "table.csv", ["text"], [(text,)])
        written = (Path(folder) / "table.csv").read_text(encoding="utf-8").lower()
    assert "</script" not in written
    assert "<script" not in written
    assert "<!--" not in written
