"""Build data/vocabulary.json from the training rows of the CSV.

Reads the sections data, split and vocabulary of params.yaml.
"""

from stages.command_line import command_parser, run, with_progress  # first, for a Ctrl-C while the others are imported

# isort: split

from collections.abc import Iterator

from stages.artifacts.prompts_csv import DataParameters, PromptChunk, read_prompts
from stages.artifacts.vocabulary_json import VOCABULARY_FILE, write_vocabulary
from stages.core.split import SplitParameters
from stages.core.vocabulary import UnusableTextError, VocabularyParameters, build_vocabulary
from stages.errors import UserError
from stages.parameters import read_section


def main() -> None:
    """Run the stage."""
    quiet = command_parser(__doc__).parse_args().quiet
    data = read_section("data", DataParameters)
    split = read_section("split", SplitParameters)
    parameters = read_section("vocabulary", VocabularyParameters)

    chunk = PromptChunk(VOCABULARY_FILE)
    rows = 0

    def training_texts() -> Iterator[list[str]]:
        nonlocal chunk, rows
        for read in with_progress(read_prompts(data, split), "build_vocabulary", quiet=quiet):
            chunk = read.of("train")
            rows += len(chunk)
            yield chunk.texts()

    try:
        vocabulary = build_vocabulary(parameters, training_texts())
    except UnusableTextError as error:
        raise UserError(f"{chunk.place(error.index)}: {error}") from None
    write_vocabulary(vocabulary)
    if not quiet:
        tokens = f"{vocabulary.size:,} tokens ({vocabulary.name})"
        print(f"vocabulary: {tokens} from {rows:,} training rows -> {VOCABULARY_FILE}")


if __name__ == "__main__":
    run(main)
