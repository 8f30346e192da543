"""How a token is written where people read it: white space and bytes can be seen."""

from stages.core.vocabulary import EOS, Vocabulary

MOST_CHARACTERS = 16

_VISIBLE = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"})
_NOT_TEXT = "\N{REPLACEMENT CHARACTER}"


class TokenLabels:
    """Labels of token ids."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._names = {token_id: name for name, token_id in vocabulary.token_to_id.items()}

    def __getitem__(self, token_id: int) -> str:
        if token_id == self._vocabulary.eos_id:
            return EOS
        text = self._vocabulary.decode([token_id])
        if _NOT_TEXT in text or not text:  # part of a character's bytes
            text = self._names[token_id]
        text = "".join(
            character if character.isprintable() else f"U+{ord(character):04X}"
            for character in text.translate(_VISIBLE)
        )
        return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
