"""The vocabulary: build one from training texts, encode text to token_ids, decode token_ids to text.

Three tokenizers, each stored as the tokenizers library's JSON:

* word: what stands between white space; an unknown word is an error, or ``<UNK>``.
* character: Unicode code points; round-trips any text made of known characters.
* bpe: byte-level byte pair encoding; round-trips any text.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache, partial
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pydantic
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from stages.core.frames import (
    Frame,
    UnusableTextError,
    find_unusable_text,
    joined_texts,
    text_column,
    text_data,
    text_offsets,
    text_sizes,
)
from stages.core.params_model import ParamsModel
from stages.errors import UserError

EOS = "<EOS>"
UNKNOWN = "<UNK>"

if TYPE_CHECKING:
    import tiktoken

TokenizerName = Literal["word", "character", "bpe"]
TokenIds = npt.NDArray[np.integer[Any]]

_BYTES = 256
_SMALLEST_BPE = _BYTES + 1  # every byte, and <EOS>
_NO_UNKNOWN = ""  # can be no token of a text, so that an unknown one is never taken for another
_CODE_POINTS = 0x110000
_CHARACTERS_AT_ONCE = 1 << 14
_ABSENT = -1
# Python's str.split takes these four for white space; Unicode and the tokenizers library do not.
_ONLY_PYTHON_SPACES = "\x1c\x1d\x1e\x1f"
_WORD = re.compile(rf"(?:\S|[{_ONLY_PYTHON_SPACES}])+")
# How GPT-2, and so the tokenizers library's ByteLevel, cuts text before merging bytes.
_GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_END = "\0"
_PIECE_BYTES = 1 << 21  # of text encoded at once, so that a cell of 60 MB takes little more memory than its tokens
_ASCII_SPACES_TO_SPACE = bytes(ord(" ") if byte in b"\t\n\v\f\r" else byte for byte in range(_BYTES))
_UNICODE_SPACE = re.compile(
    rb"\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2(?:\x80[\x80-\x8a\xa8\xa9\xaf]|\x81\x9f)|\xe3\x80\x80"  # U+85, A0, 1680, 2000 to 200A, ...
)
_UNICODE_SPACES_BEGIN = (b"\xc2", b"\xe1\x9a\x80", b"\xe2\x80", b"\xe2\x81\x9f", b"\xe3\x80\x80")
_NO_WORD = -2
_CHUNKS_KEPT = 1 << 17
_REPEATED_AT_ONCE = 1 << 12
_CUT = re.compile(rb"[!-~] (?=[!-~])")  # between two words: no token of any tokenizer crosses it
_FIRST_NOT_ASCII = 0x80
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

    @cached_property
    def token_to_id(self) -> dict[str, int]:
        """Every token's id, in the order of the ids."""
        return dict(sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1]))

    @property
    def end(self) -> str:
        """What stands for <EOS> behind each text that ``encode_texts`` takes; no text of a table has a NUL."""
        return f" {_END} " if self.name == "word" else _END

    def encode(self, text: str) -> list[int]:
        """Return the token ids of one text, which may be any.

        Raises:
            UnusableTextError: a word or character is unknown and there is no <UNK>.
        """
        known = self._text_token_ids
        match self.name:
            case "word":
                tokens: Sequence[str] = split_words(text)
                _refuse_words(tokens, [EOS])
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
        pieces = [encode(piece) for piece in _pieces(texts)]
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
        may_be_space = (first_bytes <= ord(" ")) | (first_bytes >= _FIRST_NOT_ASCII)
        unclear = there[may_be_space | (token_ids[there] == self._absent)]
        words = (_WORD.search(text) for text in texts.take(pa.array(unclear)).to_pylist())
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
        ids = np.full(_CODE_POINTS, self._absent, dtype=np.int32)
        for token, token_id in self._text_token_ids.items():
            if token_id != self.unknown_id:
                ids[ord(token)] = token_id
        ids[ord(_END)] = self.eos_id
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
        return self._checked(self._code_point_ids.take(_code_points(text)), _ABSENT)

    def _encode_words(self, texts: memoryview) -> TokenIds:
        words, indices = _distinct_words(texts)
        _refuse_words(words, [f"{EOS} "])
        token_ids = np.array([self._word_ids.get(word, self._absent) for word in words], np.int32)[indices]
        return self._checked(token_ids[token_ids != _NO_WORD], _ABSENT)

    @cached_property
    def _word_ids(self) -> dict[str, int]:
        """The id of each word with a space behind it."""
        words = {f"{word} ": token_id for word, token_id in self._text_token_ids.items()}
        return words | {f"{_END} ": self.eos_id, " ": _NO_WORD}

    def _checked(self, token_ids: TokenIds, absent: int) -> TokenIds:
        if self.unknown_id is None and (token_ids == absent).any():
            raise UnusableTextError("a word or character is not in the vocabulary")
        return token_ids

    def _encode_bytes(self, texts: memoryview) -> TokenIds:
        chunks, indices = _distinct_chunks(texts)
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
        rows = str(texts, "utf-8").split(_END)[:-1]
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
        """Encode a chunk of ``_distinct_chunks``, most of which come again and again."""
        encode = partial(self._merges.encode, allowed_special={_END}, disallowed_special=())
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
            "vocabulary", pat_str=_GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={_END: self.eos_id}
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


def build_vocabulary(parameters: VocabularyParams, frames: Iterable[Frame]) -> Vocabulary:
    """Build a vocabulary from frames of training rows, which need not fit into memory together.

    Ids of words and characters are in the order of their first appearance; bpe's are the bytes, then the merges. Then
    comes ``<UNK>`` where asked for, and ``<EOS>`` last.

    Raises:
        UnusableTextError: a text holds a word with a meaning of its own, such as ``<EOS>``; the error names its row in the frame.
    """
    if parameters.tokenizer == "bpe":
        return Vocabulary(_train_bpe(parameters.size, frames))
    added = [UNKNOWN, EOS] if parameters.unknown_token else [EOS]
    tokens: dict[str, None] = {}
    seen = np.zeros(_CODE_POINTS, np.bool_)
    for frame in frames:
        if parameters.tokenizer == "word":
            words, _ = _distinct_words(joined_texts(frame, " "))
            if not {f"{word} " for word in added}.isdisjoint(words):
                find_unusable_text(frame, lambda text: _refuse_words(split_words(text), added))
            tokens |= dict.fromkeys(words)
        elif _has_new_characters(frame, seen):
            tokens |= dict.fromkeys(_new_characters(str(joined_texts(frame, ""), "utf-8"), seen))
    if parameters.tokenizer == "word":
        tokens = dict.fromkeys(word.removesuffix(" ") for word in tokens if word != " ")
    ids = {token: token_id for token_id, token in enumerate([*tokens, *added])}
    unknown = UNKNOWN if parameters.unknown_token else _NO_UNKNOWN
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    if parameters.tokenizer == "word":
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        tokenizer.decoder = decoders.Fuse()
    _add_eos(tokenizer)
    return Vocabulary(tokenizer)


def split_words(text: str) -> list[str]:
    """Split text at white space exactly as the tokenizers library's WhitespaceSplit does."""
    if any(space in text for space in _ONLY_PYTHON_SPACES):
        return _WORD.findall(text)
    return text.split()


def _pieces(texts: memoryview) -> Iterator[memoryview]:
    """Cut long text between two words, wherever that leaves all tokens as they are."""
    begin = 0
    while len(texts) - begin > _PIECE_BYTES and (cut := _CUT.search(texts, begin + _PIECE_BYTES)):
        yield texts[begin : cut.start() + 1]
        begin = cut.start() + 1
    yield texts[begin:]


def _distinct(text: bytes | memoryview, begins: npt.NDArray[np.bool_]) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Cut a text in UTF-8 at the bytes with which a piece ``begins``, the first one among them.

    Returns:
        the distinct pieces, by their first appearance, and for each piece which of these it is.
    """
    offsets = np.append(np.flatnonzero(begins), len(text)).astype(np.int32)
    pieces = pa.StringArray.from_buffers(
        len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(text)
    ).dictionary_encode()
    return pieces.dictionary.to_pylist(), pieces.indices.to_numpy()


def _distinct_words(texts: memoryview) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Cut text into words as ``split_words`` does, each with a space behind it; see ``_distinct``.

    A space alone is no word: between two spaces.
    """
    spaced = bytes(texts).translate(_ASCII_SPACES_TO_SPACE) + b" "
    if _has_unicode_space(spaced):
        spaced = _UNICODE_SPACE.sub(b" ", spaced)
    return _distinct(spaced, np.frombuffer(b" " + spaced[:-1], np.uint8) == ord(" "))


def _has_unicode_space(text: bytes) -> bool:
    return any(begin in text for begin in _UNICODE_SPACES_BEGIN) and _UNICODE_SPACE.search(text) is not None


def _distinct_chunks(texts: memoryview) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Cut text at spaces between which ``_GPT2_PATTERN`` cuts it as well, and around each ``_END``; see ``_distinct``."""
    data = np.frombuffer(texts, np.uint8)
    before = np.concatenate([[0], data[:-1]]).astype(np.uint8)
    # Every token ends before a space, but one of white space, which may go on.
    ends_token = before > ord(" ")
    if _has_unicode_space(bytes(texts)):
        ends_token &= before < _FIRST_NOT_ASCII
    return _distinct(texts, ((data == ord(" ")) & ends_token) | (data == 0) | (before == 0))


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def _has_new_characters(frame: Frame, seen: npt.NDArray[np.bool_]) -> bool:
    """Return whether a frame has characters that are not ``seen`` [code points]; ASCII is sorted out as bytes."""
    known = bytes(np.flatnonzero(seen[:_FIRST_NOT_ASCII]).tolist())
    for name in ("prompt", "completion"):
        left = bytes(text_data(text_column(frame, name))).translate(None, known)
        if left and not seen.take(_code_points(left.decode())).all():
            return True
    return False


def _new_characters(text: str, seen: npt.NDArray[np.bool_]) -> Iterator[str]:
    """Yield the characters of a text that are not ``seen`` [code points], by their first appearance, and mark them."""
    code_points = _code_points(text)
    # In parts, as a step of Python's is taken for whatever is new to a part: nearly all of a first one.
    for part in np.split(code_points, range(_CHARACTERS_AT_ONCE, len(code_points), _CHARACTERS_AT_ONCE)):
        new = list(dict.fromkeys(part[~seen.take(part)].tolist()))
        seen[new] = True
        yield from map(chr, new)


def _train_bpe(size: int, frames: Iterable[Frame]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,  # <EOS> comes last
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Half of the library's time is cutting text. Words are cut here, each once, and repeated for it to count.
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
    tokenizer.train_from_iterator(_repeated_words(frames), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _add_eos(tokenizer)
    return tokenizer


def _repeated_words(frames: Iterable[Frame]) -> Iterator[str]:
    """Yield every word of byte-level BPE as often as it stands in the frames, with spaces between, which no word has."""
    chunks: Counter[str] = Counter()
    for frame in frames:
        distinct, indices = _distinct_chunks(joined_texts(frame, _END))
        chunks.update(dict(zip(distinct, np.bincount(indices, minlength=len(distinct)).tolist(), strict=True)))
    del chunks[_END]
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for word, _ in cut.pre_tokenize_str(chunk):
            words[word] += count
    for word, count in words.items():
        for done in range(0, count, _REPEATED_AT_ONCE):
            yield f"{word} " * min(count - done, _REPEATED_AT_ONCE)


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


def _add_eos(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens([AddedToken(EOS, special=True, normalized=False)])


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


def _refuse_words(words: Sequence[str], reserved: Sequence[str]) -> None:
    for word in reserved:
        if word in words:
            raise UnusableTextError(
                f"the word {word} has a meaning of its own and cannot stand in a text; write it another way"
            )
