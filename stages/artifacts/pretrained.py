"""pretrained/: tokenizers and weights that come in. DVC knows a stage that takes one by all that is in the folder of its kind."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from stages.core.pretrained_tokenizer import take_tokenizer
from stages.core.vocabulary import Vocabulary, VocabularyParams
from stages.errors import UserError

TOKENIZERS = Path("pretrained/tokenizers")
MODELS = Path("pretrained/models")
_COPIES = {TOKENIZERS: ("file", "cp"), MODELS: ("folder", "cp -r")}


def check_tracked(path: Path, folder: Path, key: str) -> None:
    """Check that what a key of params.yaml names is where DVC looks.

    Raises:
        UserError: it is elsewhere.
    """
    if folder not in path.parents or ".." in path.parts:
        kind, copy = _COPIES[folder]
        raise UserError(
            f"params.yaml: {key}: {path}: allowed: a {kind} in {folder}/, which DVC tracks; put it there: "
            f"{copy} {quote(str(path))} {folder}/"
        )
    linked = next(
        (place for place in (path, *path.parents) if folder in place.parents and _is_linked_folder(place)), None
    )
    if linked is not None:
        raise UserError(
            f"params.yaml: {key}: {linked}: a link to a folder, which DVC does not follow: it would keep old results when that "
            f"folder changes; put a copy there: rm {quote(str(linked))} && cp -r {quote(str(linked.resolve()))} {quote(str(linked))}"
        )


def _is_linked_folder(path: Path) -> bool:
    return path.is_symlink() and path.is_dir()


@contextmanager
def tokenizer_errors(path: Path, named: str, fix: str = "") -> Iterator[None]:
    """Say what is wrong with a tokenizer.json that is read.

    Args:
        path: of the file.
        named: how the user named it.
        fix: what to do where it is absent.

    Raises:
        UserError: it is absent, damaged, or of a kind that is not supported.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise UserError(f"{named}: not found{fix}") from None
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for a damaged file
        raise UserError(f"{named}: not a tokenizer.json of the tokenizers library ({error})") from None


def read_tokenizer(path: Path, parameters: VocabularyParams) -> Vocabulary:
    """Read the tokenizer.json that params.yaml names as vocabulary.file.

    Raises:
        UserError: it is absent, elsewhere, damaged, of a kind that is not supported, or not what vocabulary.tokenizer says.
    """
    check_tracked(path, TOKENIZERS, "vocabulary.file")
    absent = "; put it there, or set null to build a vocabulary from the rows"
    with tokenizer_errors(path, f"params.yaml: vocabulary.file: {path}", absent):
        vocabulary = take_tokenizer(path.read_text(encoding="utf-8"), parameters.eos_token)
    if vocabulary.name != parameters.tokenizer:
        raise UserError(
            f"params.yaml: vocabulary.tokenizer: found {parameters.tokenizer}, but {path} is of the kind {vocabulary.name}; "
            f"set vocabulary.tokenizer: {vocabulary.name}"
        )
    return vocabulary
