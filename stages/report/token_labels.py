"""How a token is written where people read it: white space and bytes can be seen, and no two tokens look the same."""

from collections import Counter

from stages.core.vocabulary import Vocabulary

MOST_CHARACTERS = 16

_VISIBLE = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"})
_NOT_TEXT = "\N{REPLACEMENT CHARACTER}"


def token_labels(vocabulary: Vocabulary) -> list[str]:
    """Return the label of every token, by its id; tokens that would look the same are numbered with it."""
    labels = []
    for name, token_id in vocabulary.token_to_id.items():
        text = vocabulary.decode([token_id])
        labels.append(_visible(name if _NOT_TEXT in text or not text else text))  # the name of a part of a character
    counts = Counter(labels)
    return [
        label if counts[label] == 1 or token_id == vocabulary.eos_id else f"{label} #{token_id}"  # no label has a space
        for token_id, label in enumerate(labels)
    ]


def _visible(text: str) -> str:
    text = "".join(
        character if character.isprintable() else f"U+{ord(character):04X}" for character in text.translate(_VISIBLE)
    )
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
