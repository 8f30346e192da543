"""The same inputs give the same bytes in other surroundings: hash seed, threads of preparation, locale, time zone, folder."""

from pathlib import Path

from benchmarks.kills import digests
from tests.conftest import clone

SURROUNDINGS = [
    {"PYTHONHASHSEED": "1", "TZ": "Asia/Kathmandu", "LC_ALL": "C", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    {"PYTHONHASHSEED": "2", "TZ": "America/St_Johns", "LC_ALL": "C.UTF-8", "RAYON_NUM_THREADS": "4", "TOKENIZERS_PARALLELISM": "true"},
]  # fmt: skip
TEXT = "".join(f'"{n} grüße, שלום",{n * n}\n' for n in range(300))


def test_other_surroundings_give_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for number, environment in enumerate(SURROUNDINGS):
        project = clone(tmp_path / ("a" if number else "another folder") / "project")
        (project.folder / "data/prompts.csv").write_text("prompt,completion\n" + TEXT, encoding="utf-8")
        for old, new in (
            ("tokenizer: word", "tokenizer: bpe"),
            ("size: 8000", "size: 300"),
            ("validation: 0.0", "validation: 0.2"),
            ("context_length: 6", "context_length: 16"),
            ("epochs: 30", "epochs: 1"),
            ("threads: null", "threads: 1"),
        ):
            project.replace("params.yaml", old, new)
        project.run("dvc", "repro", "--force", environment=environment)
        found.append(digests(project))
    assert found[0] == found[1]
