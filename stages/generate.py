"""Complete prompts with the trained model: `python -m stages.generate "What is CNN"` prints `Great`."""

import argparse
import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages import command_line
from stages.artifacts.model_weights import read_model
from stages.artifacts.provenance_json import MODEL_FOLDER
from stages.artifacts.vocabulary_json import VOCABULARY_FILE
from stages.core.generation import Sampling
from stages.core.language_model import LanguageModel
from stages.errors import UserError

MOST_TOKENS = 1_000_000
MOST_SAMPLES = 1_000


@dataclass(frozen=True)
class Prompt:
    """A prompt as the user gave it."""

    place: str
    """Which one it is, as an error names it."""
    text: str
    problem: UserError | None = None
    """Why it has no text that can be completed."""


def main() -> None:
    """Complete the prompts given on the command line, in a file or on standard input.

    Raises:
        UserError: some prompts cannot be used, which is known after all others are answered.
    """
    options = parse_options()
    model = LanguageModel(*read_model(options.model, options.vocabulary))
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
    longest = model.longest_completion(options.max_tokens)
    prompts = [Prompt(f"prompt {number}", text) for number, text in enumerate(options.prompts, start=1)]
    prompts = prompts or read_prompts(options.file, as_json=options.json_prompts)
    if len(prompts) == 1 and options.num_samples == 1 and not options.json:
        for piece in model.stream_ids(encode_prompt(prompts[0], model), longest, sampling):
            write(piece)
        write("\n")
        return
    samplings = [replace(sampling, seed=sampling.seed + number) for number in range(options.num_samples)]
    token_ids: list[list[int] | UserError] = [encode_or_explain(prompt, model) for prompt in prompts]
    usable = [ids for ids in token_ids if not isinstance(ids, UserError)]
    drawn = [model.complete_ids(usable, longest, each) for each in samplings]
    for prompt, ids in zip(prompts, token_ids, strict=True):
        answer = ids if isinstance(ids, UserError) else [next(completions) for completions in drawn]
        write_answer(prompt, answer, as_json=options.json)
    errors = [str(ids) for ids in token_ids if isinstance(ids, UserError)]
    if errors:
        raise UserError("\n".join(errors))


def encode_or_explain(prompt: Prompt, model: LanguageModel) -> list[int] | UserError:
    """Return what the network reads for a prompt, or why it cannot be used."""
    try:
        return encode_prompt(prompt, model)
    except UserError as error:
        return error


def encode_prompt(prompt: Prompt, model: LanguageModel) -> list[int]:
    """Return what the network reads for a prompt.

    Raises:
        UserError: a word or character is unknown; the message names the prompt.
    """
    if prompt.problem is not None:
        raise prompt.problem
    return model.prompt_ids(prompt.text, prompt.place)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line.command_parser(__doc__)
    parser.add_argument(
        "prompts", nargs="*", metavar="PROMPT", help="what to complete; none: a line of standard input each"
    )
    parser.add_argument("--file", type=Path, help="read the prompts from this file, one a line")
    parser.add_argument(
        "--json-prompts",
        action="store_true",
        help='each line of the file or of standard input is JSON: a text, or an object with a text under "prompt"; '
        "so is each line of a file named .jsonl",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help='write each completion as a line of JSON, with "prompt" and "completion", or "error"',
    )
    parser.add_argument(
        "--num-samples", type=int, default=1, metavar="N", help="N completions a prompt, drawn with --seed and the next"
    )
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
    if options.prompts and options.json_prompts:
        parser.error("--json-prompts reads a file or standard input; prompts are given as they are")
    if options.max_tokens is not None and not 1 <= options.max_tokens <= MOST_TOKENS:
        parser.error(f"--max-tokens: found {options.max_tokens}, allowed: 1 to {MOST_TOKENS:,}")
    if not 1 <= options.num_samples <= MOST_SAMPLES:
        parser.error(f"--num-samples: found {options.num_samples}, allowed: 1 to {MOST_SAMPLES:,}")
    if options.num_samples > 1 and options.temperature == 0:
        parser.error("--num-samples: without a --temperature above 0 all completions of a prompt are the same")
    return options


def read_prompts(file: Path | None, *, as_json: bool = False) -> list[Prompt]:
    """Read one prompt a line, from --file or standard input.

    Raises:
        UserError: it cannot be read.
    """
    name = str(file or "standard input")
    as_json = as_json or (file is not None and file.suffix == ".jsonl")
    prompts = []
    try:
        with file.open(encoding="utf-8") if file else nullcontext(sys.stdin) as lines:
            for number, line in enumerate(lines, start=1):
                # Windows begins a text file with a byte-order mark.
                text = (line.removeprefix("\ufeff") if number == 1 else line).removesuffix("\n")
                place = f"{name}: line {number}"
                prompts.append(parse_prompt(text, place) if as_json else Prompt(place, text))
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: cannot be read: it is not UTF-8 ({error}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error}") from None
    return prompts


def parse_prompt(line: str, place: str) -> Prompt:
    """Return the prompt of a line of JSON: a text, or an object with a text under "prompt"."""
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        value = error
    text = value.get("prompt") if isinstance(value, dict) else value
    if isinstance(text, str):
        return Prompt(place, text)
    found = f"not JSON ({value})" if isinstance(value, Exception) else "JSON without a prompt"
    allowed = 'a text such as "a\\nb", or an object with a text under "prompt"'
    return Prompt(place, line, UserError(f"{place}: {found}; allowed: {allowed}"))


def write_answer(prompt: Prompt, answer: list[str] | UserError, *, as_json: bool) -> None:
    """Write a prompt's completions, a line each; for a prompt without any, an empty line or why."""
    if as_json:
        results = [{"error": str(answer)}] if isinstance(answer, UserError) else [{"completion": c} for c in answer]
        lines = [json.dumps({"prompt": prompt.text, **result}) for result in results]
    else:
        lines = [""] if isinstance(answer, UserError) else answer
    write("".join(f"{line}\n" for line in lines))


def write(text: str) -> None:
    """Write to standard output; on a terminal, without what would control it."""
    print(command_line.visible(text) if sys.stdout.isatty() else text, end="", flush=True)


if __name__ == "__main__":
    command_line.run(main)
