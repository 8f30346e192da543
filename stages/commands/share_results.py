"""Send the results of all trainings here to the DVC remote, so that no colleague computes one of them again.

They type `dvc pull --run-cache` and then `dvc repro --pull`. `dvc push --run-cache` alone is not enough: it sends which inputs gave
which outputs, but not the outputs of earlier trainings, nor the figures, which are in git.
"""

from dvc.exceptions import DvcException
from dvc.repo import Repo

from stages import command_line
from stages.errors import UserError


def main() -> None:
    """Send what the remote does not have."""
    quiet = command_line.command_parser(__doc__).parse_args().quiet
    try:
        results, files = share()
    except DvcException as error:
        raise UserError(str(error)) from error
    if not quiet:
        print(f"{results} results of stages are at the DVC remote: {files} files sent, the others were there")


def share() -> tuple[int, int]:
    """Send the run cache and the outputs that it names; return how many results it has, and how many files were sent."""
    with Repo() as repo:
        results = repo.stage_cache.push(None)
        used = repo.stage_cache.get_used_objs(results)
        sent = [repo.cloud.push(objects, odb=odb) for odb, objects in used.items()]
    return len(results), sum(len(transfer.transferred) for transfer in sent)


if __name__ == "__main__":
    command_line.run(main)
