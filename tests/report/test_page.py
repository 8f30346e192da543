import json
import re
from html.parser import HTMLParser
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.core.inspection import principal_plane, spread
from stages.core.vocabulary import TokenizerName, VocabularyParams
from stages.core.vocabulary_building import build_vocabulary
from stages.report.content import POINTS, ROWS, TOKENS, ReportContent, Sample, choose
from stages.report.markdown import describe_run
from stages.report.page import render
from stages.report.token_labels import token_labels
from tests.frames import frame_of_texts
from tests.report.conftest import HOSTILE, METRICS, make_content


class Elements(HTMLParser):
    """What a browser would make of a page: its scripts, and all addresses in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts = 0
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action")]


def page_data(page: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    values: dict[str, object] = json.loads(found[1])
    return values


def test_the_same_model_gives_the_same_page(content: ReportContent) -> None:
    assert render(content, METRICS) == render(make_content(), METRICS)


def test_a_hostile_prompt_stays_text_and_nothing_is_loaded(content: ReportContent) -> None:
    page = render(content, METRICS | {"split": "<script>"})
    elements = Elements(page)
    assert elements.scripts == 2  # the data and the page's own
    assert elements.addresses == []
    texts = page_data(page)["rows"]
    assert isinstance(texts, list)
    assert "".join(texts[1]["tokens"][:2]).startswith("<script>")


def test_probabilities_and_attention_are_those_of_the_model(content: ReportContent) -> None:
    texts = page_data(render(content, METRICS))["rows"]
    assert isinstance(texts, list)
    for text in texts:
        steps = len(text["tokens"]) - 1
        assert len(text["likely"]) == len(text["truth"]) == steps
        for layer in text["attention"]:
            for head in layer:
                assert [len(row) for row in head] == list(range(1, steps + 1))
                assert all(97 <= sum(row) <= 103 for row in head)


def test_a_prompt_that_was_not_learnt_is_told_apart() -> None:
    texts = page_data(render(make_content(completions_only=True), METRICS))["rows"]
    assert isinstance(texts, list)
    assert [text["scoredStart"] for text in texts] == [text["completionStart"] for text in texts]


def test_a_large_model_is_shown_in_part_and_the_page_says_so() -> None:
    long = [(" ".join(f"word{index}" for index in range(200)), "end")]
    content = make_content(long, context_length=256, n_layers=9, n_heads=8, d_model=16)
    page = render(content, METRICS)
    assert "layers 1, 4, 6, 9 of 9" in page
    assert f"the first {TOKENS} tokens of texts of up to 203" in page
    assert len(page) < 400_000


def test_of_many_embeddings_some_are_shown_and_those_of_the_texts() -> None:
    words = [f"word{index}" for index in range(POINTS + 500)]
    content = make_content([(" ".join(words), ""), (words[-1], "")])
    assert len(content.points) == POINTS + 2  # the last word and <EOS>
    assert f"the embeddings of {POINTS + 2:,} of {POINTS + 501:,} tokens" in render(content, METRICS)


def test_wrong_answers_are_shown_beside_right_ones() -> None:
    assert choose([True] * 20) == list(range(ROWS))
    assert choose([True] * 10 + [False] * 10) == [0, 1, 2, 10, 11, 12]
    assert choose([False, True]) == [0, 1]
    assert choose([False] * 20) == list(range(ROWS))


def test_the_plane_holds_the_largest_differences_with_a_fixed_sign() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(40, 5) * torch.tensor([1.0, 9.0, 1.0, 4.0, 1.0])
    places = principal_plane(vectors)
    assert places.shape == (40, 2)
    assert places.var(dim=0)[0] > places.var(dim=0)[1] > 9
    assert torch.equal(places, principal_plane(vectors.clone()))
    assert principal_plane(torch.randn(3, 1))[:, 1].tolist() == [0, 0, 0]


def test_spread_takes_the_first_and_the_last() -> None:
    assert spread(3, 4) == [0, 1, 2]
    assert spread(12, 4) == [0, 4, 7, 11]


@pytest.mark.parametrize(("tokenizer", "text", "labels"), [
    ("word", "what is", ["what", "is"]),
    ("character", "a \n\t", ["a", "␣", "↵", "⇥"]),
    ("bpe", "é", ["Ã", "©"]),
])  # fmt: skip
def test_labels_show_white_space_and_bytes(tokenizer: str, text: str, labels: list[str]) -> None:
    parameters = VocabularyParams.model_validate({"tokenizer": tokenizer, "size": 257, "unknown_token": False})
    vocabulary = build_vocabulary(parameters, [frame_of_texts([text])])
    names = token_labels(vocabulary)
    assert [names[token_id] for token_id in vocabulary.encode(text)] == labels
    assert names[vocabulary.eos_id] == "<EOS>"


@pytest.mark.parametrize("tokenizer", get_args(TokenizerName))
@given(texts=st.lists(st.text(" ␣\nU+0AÃé…", min_size=1, max_size=20), min_size=1))
def test_no_two_labels_are_the_same(texts: list[str], tokenizer: TokenizerName) -> None:
    parameters = VocabularyParams(tokenizer=tokenizer, size=300, unknown_token=False)
    vocabulary = build_vocabulary(parameters, [frame_of_texts(texts)])
    labels = token_labels(vocabulary)
    assert len(set(labels)) == vocabulary.size
    assert labels[vocabulary.eos_id] == "<EOS>"


def test_a_description_holds_figures_and_samples_as_text() -> None:
    text = describe_run(METRICS | {"completions_cut": 5}, [Sample(HOSTILE, "a|b\nc", "x" * 500, False, True)] * 5)
    assert "| completions cut, judged by their next tokens | 5 |" in text
    assert text.count("(cut)") == 3
    assert "| next-token accuracy | 0.2500 |" in text
    assert text.count("✗") == 3
    assert "<script>" not in text
    assert "a&#124;b c" in text
    assert max(map(len, text.splitlines())) < 600
