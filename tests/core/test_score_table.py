"""The rows of an evaluation add up to its figures."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.artifacts.scores_parquet import read_scores, write_scores
from stages.core.evaluation import complete_rows, score, summarise
from stages.core.examples import Examples
from stages.core.rows import count_scored, encode_rows
from stages.core.score_table import RATIOS, RowPlaces, ScoreTable, build_score_table, ratio
from stages.core.vocabulary import VocabularyParams
from stages.core.vocabulary_building import build_vocabulary
from stages.core.windows import DatasetParams, RowSpans
from stages.errors import UserError
from tests.frames import frame_of
from tests.training.conftest import network

WORDS = st.lists(st.sampled_from(["a", "b", "ç", "דג"]), min_size=1, max_size=6).map(" ".join)


def evaluated(cells: list[str], tokenizer: str, packing: str, loss_on: str) -> tuple[dict[str, float], ScoreTable]:
    """The figures and the table of an untrained model on rows: prompt, completion, prompt, completion, ..."""
    parameters = VocabularyParams.model_validate({"tokenizer": tokenizer, "size": 300, "unknown_token": False})
    frame = frame_of(zip(cells[::2], cells[1::2], strict=True))
    vocabulary = build_vocabulary(parameters, [frame])
    dataset = DatasetParams.model_validate({"packing": packing, "loss_on": loss_on, "stride": None})
    encoded = encode_rows(vocabulary, frame)
    offsets = np.cumsum([0, *encoded.row_lengths])
    spans = RowSpans(offsets, offsets[:-1] + encoded.prompt_lengths)
    split = Examples(encoded.token_ids, spans, dataset, 8, vocabulary.eos_id)
    model = network(vocabulary_size=vocabulary.size).eval()
    scores = score(model, split, 3)
    completions = complete_rows(
        model, split, scores.rows, eos_id=vocabulary.eos_id, batch_size=3, max_new_tokens=None, texts=2
    )
    counted = count_scored(vocabulary, frame, encoded, dataset, begins_split=True)
    rows = len(encoded.row_lengths)
    places = RowPlaces(["a.csv"] * rows, np.arange(2, 2 + rows), "kind", ["x"] * rows)
    table = build_score_table("test", places, split, dataset, vocabulary, scores.rows, completions)
    return summarise(scores, counted.bytes, completions), table


@pytest.mark.parametrize("tokenizer", ["word", "character", "bpe"])
@pytest.mark.parametrize("packing", ["rows", "stream"])
@given(rows=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6), loss_on=st.sampled_from(["all", "completion"]))
def test_its_sums_are_the_figures(tokenizer: str, packing: str, rows: list[tuple[str, str]], loss_on: str) -> None:
    metrics, table = evaluated([cell for row in rows for cell in row], tokenizer, packing, loss_on)
    assert list(zip(table.prompts, table.expected, strict=True)) == rows
    assert metrics["rows"] == len(table) == len(rows)
    assert metrics["tokens"] == table.tokens.sum()
    for name in RATIOS:
        figure = ratio(table, name)
        assert (None if figure is None else round(figure, 6)) == metrics.get(name), name


def test_a_text_without_completion_is_not_judged() -> None:
    metrics, table = evaluated(["a b a b", "", "b a", "", "a a a", ""], "word", "rows", "all")
    assert "completion_exact_match" not in metrics
    assert table.exact == [None, None, None]
    assert [completion is None for completion in table.completions] == [False, False, True]


def test_the_file_gives_the_table_back_and_the_same_bytes(tmp_path: Path) -> None:
    _, table = evaluated(["a b", "b", "b a", "", "ç", "דג a"], "word", "rows", "all")
    digests = set()
    for name in ("one", "other"):
        write_scores(tmp_path / name, table)
        digests.add(hashlib.md5((tmp_path / name).read_bytes()).hexdigest())
        again = read_scores((tmp_path / name).read_bytes(), name)
        assert (again.split, again.prompts, again.expected) == (table.split, table.prompts, table.expected)
        assert (again.completions, again.exact) == (table.completions, table.exact)
        assert (again.files, again.rows.tolist()) == (["a.csv"] * 3, [2, 3, 4])
        assert (again.group_column, again.groups) == ("kind", ["x"] * 3)
        assert np.array_equal(again.loss_sum, table.loss_sum)
        assert {name: ratio(again, name) for name in RATIOS} == {name: ratio(table, name) for name in RATIOS}
    assert len(digests) == 1


@pytest.mark.parametrize("content", [b"", b"PAR1", b"row,exact\n1,True\n"])
def test_what_is_no_table_is_named(content: bytes) -> None:
    with pytest.raises(UserError, match=r"^main: data/scores.parquet: not a table of scores \(.*\); make it again"):
        read_scores(content, "main: data/scores.parquet")
