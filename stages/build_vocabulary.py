"""Build data/vocabulary.json from the training rows of the CSV.

Reads the sections data, split and vocabulary of params.yaml.
"""

from collections.abc import Iterator

from stages.artifacts.prompts_csv import DataParams, PromptChunk, read_prompts
from stages.artifacts.vocabulary_json import VOCABULARY_FILE, write_vocabulary
from stages.command_line import command_parser, run, with_progress
from stages.core.split import SplitParams
from stages.core.vocabulary import UnusableTextError, VocabularyParams, build_vocabulary
from stages.errors import UserError
from stages.inputs import unchanged_inputs
from stages.parameters import read_section


@unchanged_inputs("build_vocabulary")
def main() -> None:
    """Run the stage."""
    quiet = command_parser(__doc__).parse_args().quiet
    data = read_section("data", DataParams)
    split = read_section("split", SplitParams)
    parameters = read_section("vocabulary", VocabularyParams)

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
