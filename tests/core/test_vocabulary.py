import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from stages.core.frames import UnusableTextError, joined_texts
from stages.core.rows import Scored, count_scored, encode_rows
from stages.core.text_cuts import split_words
from stages.core.vocabulary import EOS, UNKNOWN, TokenizerName, Vocabulary, VocabularyParams
from stages.core.vocabulary_building import build_vocabulary
from stages.core.windows import DatasetParams
from stages.errors import UserError
from tests.frames import frame_of, frame_of_texts

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
ODD_TEXT = st.text(st.sampled_from("ab \t\r\n\x0b\x1c\x1d\x1f\x85\xa0\u180e\u2028\u200b\u3000\ufeffé😀<EOS>"))
SEED_TEXTS = ["what is CNN", "Great", "CNN is what", "Great"]


def build(
    name: TokenizerName, texts: list[str] = SEED_TEXTS, *, size: int = 300, unknown_token: bool = False
) -> Vocabulary:
    return build_vocabulary(
        VocabularyParams(tokenizer=name, size=size, unknown_token=unknown_token),
        [frame_of_texts(texts)],
    )


BPE = build("bpe", [*SEED_TEXTS, "the there then aaaa <EOS> 2002 été"], size=320)


def test_the_seeds_vocabulary() -> None:
    vocabulary = build("word")
    assert vocabulary.token_to_id == {"what": 0, "is": 1, "CNN": 2, "Great": 3, "<EOS>": 4}
    assert (vocabulary.size, vocabulary.eos_id, vocabulary.unknown_id) == (5, 4, None)
    assert vocabulary.encode("what is CNN") == [0, 1, 2]
    assert vocabulary.decode([3, 4]) == "Great"


def test_unknown_comes_before_eos() -> None:
    vocabulary = build("word", unknown_token=True)
    assert list(vocabulary.token_to_id)[-2:] == [UNKNOWN, EOS]
    assert vocabulary.encode("what else") == [0, vocabulary.unknown_id]
    assert vocabulary.decode(vocabulary.encode("what else")) == f"what {UNKNOWN}"


@given(st.one_of(TEXT, ODD_TEXT))
def test_characters_round_trip(text: str) -> None:
    vocabulary = build("character", [text, "more"])
    assert vocabulary.decode([*vocabulary.encode(text), vocabulary.eos_id]) == text
    assert vocabulary.encode(text) == vocabulary.tokenizer.encode(text).ids


@given(st.one_of(TEXT, ODD_TEXT))
def test_bpe_round_trips(text: str) -> None:
    assert BPE.decode([*BPE.encode(text), BPE.eos_id]) == text
    assert BPE.eos_id not in BPE.encode(text)
    assert BPE.encode(text) == BPE.tokenizer.encode(text).ids


@given(
    st.lists(st.text("abc '1\n"), min_size=1),
    st.text("abc '1\n", max_size=60),
    st.integers(257, 330),
)
def test_bpe_encodes_as_the_tokenizers_library_does_whatever_it_learned(texts: list[str], text: str, size: int) -> None:
    vocabulary = build("bpe", texts * 2, size=size)
    for one in [*texts, text]:
        assert vocabulary.encode(one) == vocabulary.tokenizer.encode(one).ids


@given(st.lists(st.one_of(TEXT, ODD_TEXT)))
def test_words_are_the_tokenizers_librarys(texts: list[str]) -> None:
    texts = [text.replace(EOS, "") for text in texts]
    vocabulary = build("word", texts)
    for text in texts:
        assert vocabulary.encode(text) == vocabulary.tokenizer.encode(text).ids
        assert vocabulary.decode(vocabulary.encode(text)) == " ".join(split_words(text))


@pytest.mark.parametrize("name", ["word", "character", "bpe"])
@given(
    texts=st.lists(
        st.one_of(CELL, st.text("ab \n'\uffff", max_size=6)).filter(lambda text: EOS not in text), min_size=1
    )
)
def test_many_texts_at_once_are_encoded_as_the_tokenizers_library_encodes_each(
    name: TokenizerName, texts: list[str]
) -> None:
    vocabulary = build(name, texts)
    token_ids = vocabulary.encode_texts(joined_texts(frame_of_texts(texts), vocabulary.end))
    expected = [[*vocabulary.tokenizer.encode(text).ids, vocabulary.eos_id] for text in texts]
    assert token_ids.tolist() == [token_id for ids in expected for token_id in ids]


@pytest.mark.parametrize("unknown_token", [False, True])
def test_the_text_eos_never_becomes_the_end(*, unknown_token: bool) -> None:
    vocabulary = build("character", ["<EOS>"], unknown_token=unknown_token)
    assert vocabulary.eos_id not in vocabulary.encode("<EOS>")
    with pytest.raises(UnusableTextError, match="<EOS> has a meaning of its own") as raised:
        build("word", ["fine", "not <EOS>"], unknown_token=unknown_token)
    assert (raised.value.row, raised.value.column) == (1, "prompt")
    with pytest.raises(UnusableTextError, match="<EOS> has a meaning of its own"):
        build("word", unknown_token=unknown_token).encode("what <EOS>")


def test_unk_is_a_plain_word_unless_it_is_asked_for() -> None:
    vocabulary = build("word", ["an <UNK> <unk>"])
    assert vocabulary.unknown_id is None
    with pytest.raises(UnusableTextError):
        vocabulary.encode("other")
    with pytest.raises(UnusableTextError, match="<UNK> has a meaning"):
        build("word", ["an <UNK>"], unknown_token=True)


def test_an_unknown_word_is_named_with_its_place_its_neighbours_and_the_fix() -> None:
    with pytest.raises(
        UnusableTextError, match=r"'Graet' \(word 2\).*nearest known: 'Great'.*unknown_token: true.*bpe"
    ) as raised:
        encode_rows(build("word"), frame_of([("what is", ""), ("what", "is Graet")]))
    assert (raised.value.row, raised.value.column) == (1, "completion")
    with pytest.raises(UnusableTextError, match=r"'ö' \(U\+00F6, character 2\)"):
        build("character").encode("wöhat")


@pytest.mark.parametrize(("typed", "meant"), [("What IS cnn", "what is CNN"), ("great", "Great"), ("CNN", "CNN")])
def test_a_prompt_may_differ_in_case(typed: str, meant: str) -> None:
    vocabulary = build("word")
    assert vocabulary.encode_prompt(typed) == vocabulary.encode(meant)


def test_a_prompt_that_could_mean_two_words_is_refused() -> None:
    vocabulary = build("word", ["Polish polish"])
    assert vocabulary.encode_prompt("polish Polish") == [1, 0]
    with pytest.raises(UnusableTextError, match="nearest known: 'Polish', 'polish'"):
        vocabulary.encode_prompt("POLISH")


def test_bpe_has_the_size_asked_for_with_eos_last() -> None:
    vocabulary = build("bpe", ["the cat sat on the mat and the rat sat on the cat"] * 9, size=262)
    assert vocabulary.size == 262
    assert vocabulary.eos_id == 261
    with pytest.raises(pydantic.ValidationError, match="at least 257"):
        build("bpe", size=256)


def test_another_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match="build_vocabulary did not make it"):
        Vocabulary(
            Tokenizer.from_str('{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{},"merges":[]}}')
        )


def test_rows() -> None:
    rows = encode_rows(build("word"), frame_of([("what is CNN", "Great"), ("what is", ""), ("", "Great")]))
    assert rows.token_ids.tolist() == [0, 1, 2, 4, 3, 4, 0, 1, 4, 4, 3, 4]
    assert rows.row_lengths.tolist() == [6, 3, 3]
    assert rows.prompt_lengths.tolist() == [4, 3, 1]


@pytest.mark.parametrize("name", ["word", "character", "bpe"])
@given(pairs=st.lists(st.tuples(st.text("ab \n", max_size=3), st.text("ab \n", max_size=3)).filter(any)))
def test_a_completion_that_is_there_ends_with_eos_even_if_it_has_no_word(
    name: TokenizerName, pairs: list[tuple[str, str]]
) -> None:
    vocabulary = build(name, [text for pair in pairs for text in pair])
    prompts = [[*vocabulary.encode(prompt), vocabulary.eos_id] for prompt, _ in pairs]
    completions = [[*vocabulary.encode(text), vocabulary.eos_id] if text else [] for _, text in pairs]
    rows = encode_rows(vocabulary, frame_of(pairs))
    expected = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    assert rows.token_ids.tolist() == [token_id for row in expected for token_id in row]
    assert rows.row_lengths.tolist() == list(map(len, expected))
    assert rows.prompt_lengths.tolist() == list(map(len, prompts))


@pytest.mark.parametrize(
    ("packing", "loss_on", "begins_split", "expected"),
    [
        # Tokens: ab cd EOS é EOS, ef EOS, EOS g EOS: 5 + 2 + 3. Bytes: 5 + 2, 4 (two are white space), 1.
        ("rows", "all", True, Scored(10 - 3, 12 - 2 - 4)),
        ("stream", "all", True, Scored(10 - 1, 12 - 2)),
        ("stream", "all", False, Scored(10, 12)),
        ("rows", "completion", True, Scored(2 + 0 + 2, 2 + 1)),
        ("stream", "completion", True, Scored(2 + 0 + 2, 2 + 1)),
    ],
)
def test_scored_targets_and_the_bytes_that_they_stand_for(
    packing: str, loss_on: str, *, begins_split: bool, expected: Scored
) -> None:
    pairs = [("ab cd", "é"), ("  ef", ""), ("", "g")]
    parameters = DatasetParams.model_validate({"packing": packing, "loss_on": loss_on, "stride": None})
    vocabulary = build("word", [text for pair in pairs for text in pair])
    rows = encode_rows(vocabulary, frame_of(pairs))
    assert count_scored(vocabulary, frame_of(pairs), rows, parameters, begins_split=begins_split) == expected


@pytest.mark.parametrize("name", ["word", "character", "bpe"])
@pytest.mark.parametrize("unknown_token", [False, True])
@given(
    texts=st.lists(
        st.one_of(CELL, ODD_TEXT, st.text("ab é 日", max_size=4)).filter(lambda text: EOS not in text), min_size=1
    )
)
def test_what_precedes_every_target_is_counted_to_the_byte(
    name: TokenizerName, *, unknown_token: bool, texts: list[str]
) -> None:
    """Against the tokenizers library's own offsets, in characters, of the first token of each text."""
    known = texts[: len(texts) // 2 + 1]
    vocabulary = build(name, known if unknown_token else texts, unknown_token=unknown_token and name != "bpe")
    frame = frame_of_texts(texts)
    rows = encode_rows(vocabulary, frame)
    parameters = DatasetParams(packing="rows", loss_on="all", stride=None)
    firsts = [vocabulary.tokenizer.encode(text).offsets[:1] for text in texts]
    if name == "bpe":
        sizes = [len(vocabulary.tokenizer.encode(text).tokens[0]) if text else 0 for text in texts]
    else:
        sizes = [len(text[: first[0][1]].encode()) if first else 0 for text, first in zip(texts, firsts, strict=True)]
    scored = count_scored(vocabulary, frame, rows, parameters, begins_split=True)
    assert scored.bytes == sum(len(text.encode()) for text in texts) - sum(sizes)


@given(st.lists(st.tuples(CELL, CELL).filter(any), min_size=1))
def test_bytes_of_a_stream_do_not_depend_on_the_vocabulary(pairs: list[tuple[str, str]]) -> None:
    texts = [text for pair in pairs for text in pair]
    parameters = DatasetParams(packing="stream", loss_on="all", stride=None)
    counted = {
        count_scored(
            vocabulary, frame_of(pairs), encode_rows(vocabulary, frame_of(pairs)), parameters, begins_split=False
        ).bytes
        for vocabulary in (build("character", texts), BPE)
    }
    assert counted == {sum(len(text.encode()) for text in texts)}
