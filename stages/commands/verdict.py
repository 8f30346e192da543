"""Say whether B is better than A on the same rows, by how much and where: `python -m stages.commands.verdict A [B]`.

A and B are each the workspace, a commit, a DVC experiment or an MLflow run; or several trainings that differ in their
seed alone: names divided by commas, or a pattern of experiments such as 'wide-*'. Without B, the workspace is judged.
"""

from pathlib import Path

from rich.console import Console

from stages import command_line
from stages.artifacts.atomic import atomic_file
from stages.verdict.judge import judge
from stages.verdict.page import render
from stages.verdict.sources import WORKSPACE, find_runs
from stages.verdict.terminal import print_verdict, to_markdown

PAGE = Path("metrics/verdict.html")


def main() -> None:
    """Print the verdict, and write it as a page."""
    parser = command_line.command_parser(__doc__)
    parser.add_argument("a", metavar="A", help="what B is compared with")
    parser.add_argument("b", metavar="B", nargs="?", default=WORKSPACE, help="what is judged (default: the workspace)")
    parser.add_argument("--markdown", action="store_true", help="print Markdown, to paste into a pull request")
    options = parser.parse_args()
    verdict = judge(find_runs(options.a), find_runs(options.b))
    with atomic_file(PAGE) as file:
        file.write(render(verdict).encode())
    if options.markdown:
        print(to_markdown(verdict))
        return
    print_verdict(verdict, Console(highlight=False))
    if not options.quiet:
        print(f"\n-> {PAGE}")


if __name__ == "__main__":
    command_line.run(main)
