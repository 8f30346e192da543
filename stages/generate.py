"""Complete prompts with the trained model: `python -m stages.generate "What is CNN"` prints `Great`."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from tokenizers.decoders import DecodeStream

from stages import command_line
from stages.artifacts.model_weights import read_model
from stages.artifacts.provenance_json import MODEL_FOLDER
from stages.artifacts.vocabulary_json import VOCABULARY_FILE
from stages.core.generation import Sampling, generate, stream
from stages.core.vocabulary import Vocabulary
from stages.errors import UserError


def main() -> None:
    """Complete the prompts given on the command line, in a file or on standard input, one a line."""
    options = parse_options()
    model, vocabulary = read_model(options.model, options.vocabulary)
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
    prompts = [
        model.prompt_ids(vocabulary.encode_prompt(text), vocabulary.eos_id)
        for text in options.prompts or read_lines(options.file)
    ]
    longest = options.max_tokens or model.network.config.context_length
    if len(prompts) == 1:
        for piece in text_pieces(stream(model.network, prompts[0], vocabulary.eos_id, longest, sampling), vocabulary):
            print(piece, end="", flush=True)
        print()
        return
    for completion in generate(model.network, prompts, vocabulary.eos_id, longest, sampling):
        print(vocabulary.decode(completion), flush=True)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line.command_parser(__doc__)
    parser.add_argument(
        "prompts", nargs="*", metavar="PROMPT", help="what to complete; none: a line of standard input each"
    )
    parser.add_argument("--file", type=Path, help="read the prompts from this file, one a line")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="stop after N tokens (default: the context length)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 takes the most likely token (default)"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K most likely tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the fewest tokens that hold probability P")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other completions (default 0)")
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help=f"the model's folder (default {MODEL_FOLDER})")
    parser.add_argument(
        "--vocabulary", type=Path, default=VOCABULARY_FILE, help=f"its words (default {VOCABULARY_FILE})"
    )
    options = parser.parse_args()
    if options.prompts and options.file:
        parser.error("give prompts or --file, not both")
    if options.max_tokens is not None and options.max_tokens < 1:
        parser.error(f"--max-tokens: found {options.max_tokens}, allowed: 1 or more")
    return options


def read_lines(file: Path | None) -> list[str]:
    """Read one prompt a line, from --file or standard input.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with file.open(encoding="utf-8") if file else nullcontext(sys.stdin) as lines:
            return [line.removesuffix("\n") for line in lines]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file or 'standard input'}: cannot be read: {error}") from None


def text_pieces(token_ids: Iterator[int], vocabulary: Vocabulary) -> Iterator[str]:
    """Yield the text as it grows; a character whose bytes are not all there yet waits for the rest of them."""
    decoder = DecodeStream(skip_special_tokens=True)
    chosen: list[int] = []
    printed = 0
    for token_id in token_ids:
        piece = decoder.step(vocabulary.tokenizer, token_id) or ""
        chosen.append(token_id)
        printed += len(piece)
        yield piece
    yield vocabulary.decode(chosen)[printed:]  # bytes whose rest never came


if __name__ == "__main__":
    command_line.run(main)
