"""The vocabulary: encode text to token_ids, decode token_ids to text; ``vocabulary_building`` builds one.

Three tokenizers, each stored as the tokenizers library's JSON:

* word: what stands between white space; an unknown word is an error, or ``<UNK>``.
* character: Unicode code points; round-trips any text made of known characters.
* bpe: byte-level byte pair encoding; round-trips any text.
"""

import difflib
import json
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, partial
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pydantic
from tokenizers import Tokenizer, models, pre_tokenizers

from stages.core.frames import (
    UnusableTextError,
    text_data,
    text_offsets,
    text_sizes,
)
from stages.core.params_model import ParamsModel
from stages.core.text_cuts import (
    CODE_POINTS,
    END,
    FIRST_NOT_ASCII,
    GPT2_PATTERN,
    WORD,
    cut_pieces,
    distinct_chunks,
    distinct_words,
    split_words,
    to_code_points,
)
from stages.errors import UserError

EOS = "<EOS>"
UNKNOWN = "<UNK>"

if TYPE_CHECKING:
    import tiktoken

TokenizerName = Literal["word", "character", "bpe"]
TokenIds = npt.NDArray[np.integer[Any]]

_BYTES = 256
_SMALLEST_BPE = _BYTES + 1  # every byte, and <EOS>
_ABSENT = -1
_NO_WORD = -2
_CHUNKS_KEPT = 1 << 17
_CHARACTER_BYTES = np.repeat([1, 2, 3, 4], [0xC0, 0x20, 0x10, 0x10])  # by the first one
_NEAREST = 3
_SEARCHED_FOR_NEAREST = 100_000  # words; comparing with more would take longer than a user waits for a message


class VocabularyParams(ParamsModel):
    """What a token is."""

    tokenizer: TokenizerName
    """word: what stands between white space; character: code points; bpe: byte-level byte pair encoding."""
    size: int = pydantic.Field(ge=1, le=2**24)
    """bpe only: how many tokens at most, with <EOS> and the 256 bytes."""
    unknown_token: bool
    """word and character only: add <UNK> for what the training rows do not hold; without it, that is an error."""
    file: str | None = None
    """A tokenizer.json under pretrained/tokenizers/ that is taken unchanged; null: one is built from the training rows."""
    eos_token: str | None = None
    """The token of that file that ends a text; null: found by its usual names."""

    @pydantic.model_validator(mode="after")
    def _end_a_file(self) -> Self:
        if self.eos_token is not None and self.file is None:
            raise ValueError(f"eos_token: found {self.eos_token!r}; allowed without a file: null, for {EOS}")
        return self

    @pydantic.model_validator(mode="after")
    def _hold_every_byte(self) -> Self:
        if self.tokenizer == "bpe" and self.size < _SMALLEST_BPE:
            raise ValueError(f"size: found {self.size}; bpe needs at least {_SMALLEST_BPE} (every byte, and {EOS})")
        return self


class Vocabulary:
    """Text to token_ids and back, by a tokenizer of the tokenizers library."""

    tokenizer: Tokenizer
    name: TokenizerName
    size: int
    """How many tokens there are; the ids are 0 to size - 1."""
    eos_id: int
    unknown_id: int | None
    """The id of <UNK>; None where unknown text is an error, and for bpe, which knows all text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take a tokenizer as ``build_vocabulary`` and ``take_tokenizer`` return them.

        Raises:
            UserError: it is of another make.
        """
        eos_id = _find_eos(tokenizer)
        # A text that says <EOS> ends nothing: it is encoded as the characters it is made of.
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        self.name = _name(tokenizer)
        self.size = tokenizer.get_vocab_size()
        ids = self.token_to_id.values()
        if missing := set(range(self.size)) - set(ids):
            raise UserError(
                f"ids: found none of {min(missing)}, but one of {max(ids)}; allowed: 0 to {self.size - 1:,}, each once"
            )
        self.eos_id = eos_id
        self.unknown_id = None if self.name == "bpe" else tokenizer.token_to_id(tokenizer.model.unk_token)

    def __reduce__(self) -> tuple[type[Self], tuple[Tokenizer]]:
        """Travel to another process as the tokenizer alone; what follows from it is found again there."""
        return type(self), (self.tokenizer,)

    @cached_property
    def token_to_id(self) -> dict[str, int]:
        """Every token's id, in the order of the ids."""
        return dict(sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1]))

    @property
    def end(self) -> str:
        """What stands for <EOS> behind each text that ``encode_texts`` takes; no text of a table has a NUL."""
        return f" {END} " if self.name == "word" else END

    def encode(self, text: str) -> list[int]:
        """Return the token ids of one text, which may be any.

        Raises:
            UnusableTextError: a word or character is unknown and there is no <UNK>.
        """
        known = self._text_token_ids
        match self.name:
            case "word":
                tokens: Sequence[str] = split_words(text)
                refuse_words(tokens, [EOS])
            case "character":
                tokens = text
            case "bpe" if self.cuts_as_gpt2:
                # Without special tokens, what a text holds is encoded as its characters.
                return self._merges.encode(text, allowed_special=set(), disallowed_special=())
            case "bpe":
                return list(self.tokenizer.encode(text, add_special_tokens=False).ids)
        token_ids = [known.get(token, self.unknown_id) for token in tokens]
        if None in token_ids:
            raise UnusableTextError(self._explain_unknown(tokens, token_ids.index(None)))
        return [token_id for token_id in token_ids if token_id is not None]

    def encode_texts(self, texts: memoryview) -> TokenIds:
        """Return the token ids [tokens] of many texts at once, in UTF-8, each followed by ``end``, which becomes <EOS>.

        Raises:
            UnusableTextError: a word or character is unknown and there is no <UNK>. Which one, ``encode`` says.
        """
        if self.name == "bpe" and not self.cuts_as_gpt2:
            return self._encode_by_library(texts)
        encode = {"word": self._encode_words, "character": self._encode_characters, "bpe": self._encode_bytes}[
            self.name
        ]
        pieces = [encode(piece) for piece in cut_pieces(texts)]
        return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids; <EOS> is dropped, words are joined by a space."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def encode_prompt(self, text: str) -> list[int]:
        """Encode what a user typed: a word that is not known as it stands may differ in case from the only one meant.

        Raises:
            UnusableTextError: a word or character is unknown and there is no <UNK>, or the text is not Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            # Python writes a byte that is not UTF-8, and JSON may write half of a pair, as a surrogate.
            found = f"character {error.start + 1} (U+{ord(text[error.start]):04X})"
            raise UnusableTextError(f"{found} is not text: give the prompt in UTF-8") from None
        if self.name != "word":
            return self.encode(text)
        known = self._text_token_ids
        words = (word if word in known else self._only_match_in_another_case(word) for word in split_words(text))
        return self.encode(" ".join(words))

    def first_token_bytes(self, texts: pa.StringArray, token_ids: TokenIds) -> int:
        """Count the UTF-8 bytes that the first tokens of texts stand for; a first word has the white space before it.

        ``token_ids`` [texts] are these tokens, <EOS> where a text has none.
        """
        if self.name == "bpe":
            return int(self._byte_lengths[token_ids].sum())
        data, offsets = np.frombuffer(text_data(texts), np.uint8), text_offsets(texts)
        there = np.flatnonzero(text_sizes(texts))
        first_bytes = data[offsets[:-1][there] - offsets[0]]
        if self.name == "character":
            return int(_CHARACTER_BYTES[first_bytes].sum())
        may_be_space = (first_bytes <= ord(" ")) | (first_bytes >= FIRST_NOT_ASCII)
        unclear = there[may_be_space | (token_ids[there] == self._absent)]
        words = (WORD.search(text) for text in texts.take(pa.array(unclear)).to_pylist())
        in_unclear = sum(len(word.string[: word.end()].encode()) for word in words if word)
        return in_unclear + int(np.delete(self._byte_lengths[token_ids], unclear).sum())

    @cached_property
    def _byte_lengths(self) -> npt.NDArray[np.int64]:
        """[V] the bytes of each token of text: the byte-level alphabet has one character a byte. <EOS> has none."""
        added = {token.content for token in self.tokenizer.get_added_tokens_decoder().values()}
        lengths = np.fromiter(
            (
                len(token) if self.name == "bpe" and token not in added else len(token.encode())
                for token in self.token_to_id
            ),
            np.int64,
            self.size,
        )
        lengths[self.eos_id] = 0
        return lengths

    @cached_property
    def _text_token_ids(self) -> dict[str, int]:
        """What a word, a character or bytes of a text may become: not <EOS>, or another special token."""
        special = {token_id for token_id, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        return {token: token_id for token, token_id in self.token_to_id.items() if token_id not in special}

    @cached_property
    def _absent(self) -> int:
        return _ABSENT if self.unknown_id is None else self.unknown_id

    @cached_property
    def _code_point_ids(self) -> npt.NDArray[np.int32]:
        """[code points] the id of each character, of ``end`` that of <EOS>."""
        ids = np.full(CODE_POINTS, self._absent, dtype=np.int32)
        for token, token_id in self._text_token_ids.items():
            if token_id != self.unknown_id:
                ids[ord(token)] = token_id
        ids[ord(END)] = self.eos_id
        return ids

    @cached_property
    def _latin_ids(self) -> bytes:
        """[256] the id of each character of Latin-1, for a vocabulary of less than 256 tokens."""
        return self._code_point_ids[:_BYTES].astype(np.uint8).tobytes()

    def _encode_characters(self, texts: memoryview) -> TokenIds:
        text = str(texts, "utf-8")
        try:
            latin = text.encode("latin-1") if self.size < _BYTES else b""
        except UnicodeEncodeError:
            latin = b""
        if latin:  # a byte a character: two quick passes over bytes
            return self._checked(np.frombuffer(latin.translate(self._latin_ids), np.uint8), absent=_BYTES + _ABSENT)
        return self._checked(self._code_point_ids.take(to_code_points(text)), _ABSENT)

    def _encode_words(self, texts: memoryview) -> TokenIds:
        words, indices = distinct_words(texts)
        refuse_words(words, [f"{EOS} "])
        token_ids = np.array([self._word_ids.get(word, self._absent) for word in words], np.int32)[indices]
        return self._checked(token_ids[token_ids != _NO_WORD], _ABSENT)

    @cached_property
    def _word_ids(self) -> dict[str, int]:
        """The id of each word with a space behind it."""
        words = {f"{word} ": token_id for word, token_id in self._text_token_ids.items()}
        return words | {f"{END} ": self.eos_id, " ": _NO_WORD}

    def _checked(self, token_ids: TokenIds, absent: int) -> TokenIds:
        if self.unknown_id is None and (token_ids == absent).any():
            raise UnusableTextError("a word or character is not in the vocabulary")
        return token_ids

    def _encode_bytes(self, texts: memoryview) -> TokenIds:
        chunks, indices = distinct_chunks(texts)
        encoded = [self._encode_chunk(chunk) for chunk in chunks]
        flat = np.fromiter(chain.from_iterable(encoded), np.int32)
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        begins = np.cumsum(lengths) - lengths  # of each distinct chunk in flat
        counts = lengths[indices]
        ends = np.cumsum(counts)
        total = int(counts.sum())
        return np.asarray(flat[np.arange(total) + np.repeat(begins[indices] - (ends - counts), counts)])

    def _encode_by_library(self, texts: memoryview) -> TokenIds:
        """Encode with the tokenizers library itself: slower, and exact for every way to cut text."""
        rows = str(texts, "utf-8").split(END)[:-1]
        encoded = (encoding.ids for encoding in self.tokenizer.encode_batch_fast(rows, add_special_tokens=False))
        return np.fromiter(chain.from_iterable((*ids, self.eos_id) for ids in encoded), np.int32)

    @cached_property
    def cuts_as_gpt2(self) -> bool:
        """Whether tiktoken gives a byte-level BPE's token_ids; see ``_merges``."""
        parts = json.loads(self.tokenizer.to_str())
        cut, added = parts["pre_tokenizer"], parts["added_tokens"]
        if cut["type"] != "ByteLevel" or not cut["use_regex"] or parts["normalizer"]:
            return False
        ids, merges = parts["model"]["vocab"], parts["model"]["merges"]
        joined = [ids["".join(pair)] for pair in merges]
        return (
            len(ids) - len([token for token in added if token["content"] in ids]) == _BYTES + len(merges)
            and all(earlier < later for earlier, later in pairwise(joined))
            and all(token["special"] for token in added)
            and not parts["model"]["ignore_merges"]
        )

    @cached_property
    def _encode_chunk(self) -> Callable[[str], list[int]]:
        """Encode a chunk of ``distinct_chunks``, most of which come again and again."""
        encode = partial(self._merges.encode, allowed_special={END}, disallowed_special=())
        return lru_cache(_CHUNKS_KEPT)(encode)

    @cached_property
    def _merges(self) -> "tiktoken.Encoding":
        """The byte pair encoding in tiktoken, which gives the same token_ids in a fraction of the time.

        tiktoken merges the pair whose joint token has the lowest id, the tokenizers library the pair whose merge was
        learned first. These agree because ids are in the order of the merges, and because training never learns two
        ways to one token: wherever its bytes stand between token boundaries, the earlier merges have cut them alike.
        """
        import tiktoken  # noqa: PLC0415 - takes a while, and only byte pairs need it

        byte_of = {character: byte for byte, character in byte_characters().items()}
        ranks = {
            bytes(byte_of[character] for character in token): token_id
            for token, token_id in self._text_token_ids.items()
        }
        return tiktoken.Encoding(
            "vocabulary", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END: self.eos_id}
        )

    def _only_match_in_another_case(self, word: str) -> str:
        matches = self._words_without_case.get(word.casefold(), [])
        return matches[0] if len(matches) == 1 else word

    @cached_property
    def _words_without_case(self) -> dict[str, list[str]]:
        words: dict[str, list[str]] = {}
        for word in self._text_token_ids:
            words.setdefault(word.casefold(), []).append(word)
        return words

    def _explain_unknown(self, tokens: Sequence[str], position: int) -> str:
        token = tokens[position]
        fix = "set vocabulary.unknown_token: true, or vocabulary.tokenizer: bpe, which knows all text"
        if self.name == "character":
            found = f"the character {token!r} (U+{ord(token):04X}, character {position + 1})"
            return f"{found} is not in the vocabulary, which is that of the training rows; {fix}"
        nearest = self._words_without_case.get(token.casefold(), []) or difflib.get_close_matches(
            token, islice(self._text_token_ids, _SEARCHED_FOR_NEAREST), n=_NEAREST
        )
        known = "nearest known: " + ", ".join(map(repr, nearest)) if nearest else "no known word is like it"
        found = f"the word {token!r} (word {position + 1}) is not in the vocabulary, which is that of the training rows"
        return f"{found}; {known}; {fix}"


def _find_eos(tokenizer: Tokenizer) -> int:
    """Return the id of <EOS>, or of the one token with which a pretrained tokenizer ends every text.

    Raises:
        UserError: there is none.
    """
    eos_id: int | None = tokenizer.token_to_id(EOS)
    if eos_id is not None:
        return eos_id
    ending = tokenizer.encode("").ids
    if len(ending) != 1:
        raise UserError(f"the tokenizer has no {EOS} token, so build_vocabulary did not make it")
    return int(ending[0])


def byte_characters() -> dict[int, str]:
    """Return the character by which the tokenizers library writes each byte: itself where it can be printed."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    characters = {ord(character): character for character in alphabet if ord(character) < _BYTES}
    unprintable = (byte for byte in range(_BYTES) if byte not in characters)
    return characters | dict(zip(unprintable, alphabet[len(characters) :], strict=True))


def _name(tokenizer: Tokenizer) -> TokenizerName:
    match tokenizer.model, tokenizer.pre_tokenizer:
        case models.WordLevel(), pre_tokenizers.WhitespaceSplit():
            return "word"
        case models.WordLevel(), pre_tokenizers.Split():
            return "character"
        case models.BPE(), pre_tokenizers.ByteLevel() | pre_tokenizers.Sequence():
            return "bpe"
    raise UserError(
        "the tokenizer is neither of words, nor of characters, nor byte-level bpe: build_vocabulary did not make it"
    )


def refuse_words(words: Sequence[str], reserved: Sequence[str]) -> None:
    """Check that no word of a text has a meaning of its own.

    Raises:
        UnusableTextError: one of those that are reserved is among the words.
    """
    for word in reserved:
        if word in words:
            raise UnusableTextError(
                f"the word {word} has a meaning of its own and cannot stand in a text; write it another way"
            )
