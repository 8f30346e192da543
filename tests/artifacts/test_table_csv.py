from pathlib import Path

from stages.artifacts.table_csv import write_table


def test_text_that_a_spreadsheet_would_compute_stays_text(tmp_path: Path) -> None:
    rows = [("=1+1", -1.5), ("+cmd|' /C calc'!A0", 2), ("@SUM(A1)", 3), ("-2", 4), ("\tx", 5), ("a=b", 6)]
    write_table(tmp_path / "table.csv", ["text", "number"], rows)
    written = (tmp_path / "table.csv").read_bytes().decode()
    assert written == "text,number\n'=1+1,-1.5\n'+cmd|' /C calc'!A0,2\n'@SUM(A1),3\n'-2,4\n'\tx,5\na=b,6\n"
