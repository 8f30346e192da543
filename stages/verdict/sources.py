"""Find the scores of a model by the name that a person gives: the workspace, a commit, a DVC experiment, an MLflow run."""

import fnmatch
import logging
import re
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import dvc.api
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import RevError, resolve_rev
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.artifacts.scores_parquet import SCORES_FILE, read_scores
from stages.core.score_table import ScoreTable
from stages.errors import UserError
from stages.tracking.run_files import read_run_file
from stages.verdict.judge import Runs

WORKSPACE = "workspace"
_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
_RUN_ID = re.compile(r"[0-9a-f]{32}")


def find_runs(name: str) -> Runs:
    """Return the scores of a model, or of several.

    Args:
        name: "workspace"; a commit, branch or tag; a DVC experiment; the name or id of an MLflow run; several of these,
            divided by commas; or a pattern of experiments, such as ``wide-*``: trainings that differ in their seed alone.

    Raises:
        UserError: nothing has this name, or it has no scores.
    """
    names = [part.strip() for part in name.split(",") if part.strip()]
    if not names:
        raise UserError("name what to compare: workspace, a commit, a DVC experiment or an MLflow run")
    found = [each for part in names for each in (experiments_like(part) if is_pattern(part) else [part])]
    return Runs(name, [_read_one(each) for each in found])


def is_pattern(name: str) -> bool:
    """Return whether a name stands for several experiments."""
    return any(character in name for character in "*?[")


def experiments_like(pattern: str) -> list[str]:
    """Return the names of the experiments, of whichever commit, that match a pattern, sorted.

    Raises:
        UserError: there are none.
    """
    with Repo() as repo:
        experiments = [name for names in repo.experiments.ls(all_commits=True).values() for name, *_ in names]
    matching = sorted(set(fnmatch.filter(filter(None, experiments), pattern)))
    if not matching:
        raise UserError(
            f"no experiment is called like {pattern!r}; there are: {', '.join(sorted(filter(None, experiments))) or 'none'}"
        )
    return matching


def _read_one(name: str) -> ScoreTable:
    if name == WORKSPACE:
        if not SCORES_FILE.exists():
            raise UserError(f"{SCORES_FILE}: not found; make it with `dvc repro`")
        return read_scores(SCORES_FILE.read_bytes(), str(SCORES_FILE))
    if not _RUN_ID.fullmatch(name):
        content = _read_revision(name)
        if content is not None:
            return read_scores(content, f"{name}: {SCORES_FILE}")
    content = read_run_file(name, SCORES_FILE)
    if content is None:
        raise UserError(
            f"{name!r}: found neither a commit, a DVC experiment nor an MLflow run of this name with {SCORES_FILE}; "
            "`dvc exp list --all-commits` and `make ui` show what there is, and `dvc repro evaluate` there makes the scores"
        )
    return read_scores(content, f"MLflow run {name}: {SCORES_FILE}")


def _read_revision(revision: str) -> bytes | None:
    """Return the scores of a commit or experiment; None where there is no such revision.

    Raises:
        UserError: the revision has no scores, or they are neither in the cache nor on the remote.
    """
    logging.getLogger("dvc").setLevel(logging.CRITICAL)  # its own words come beside ours
    try:
        with Repo() as repo:
            commit = resolve_rev(repo.scm, revision)
        content: bytes = dvc.api.read(str(SCORES_FILE), rev=commit, mode="rb")
    except RevError:
        return None
    except (DvcException, OSError) as error:
        raise UserError(
            f"{revision}: {SCORES_FILE} is not there ({str(error).splitlines()[0]}); get it with `dvc pull` or `dvc exp pull`, or run "
            "`dvc repro evaluate` on that commit"
        ) from None
    return content


def cached_scores(revisions: Iterable[str]) -> dict[str, ScoreTable]:
    """Return the scores of revisions, as far as DVC's cache has them and they can be read; "workspace" is a revision too."""
    tables = {}
    with Repo() as repo:
        for revision in revisions:
            path = SCORES_FILE if revision == WORKSPACE else _path_in_cache(repo, revision)
            if path is not None and path.exists():
                with suppress(UserError):  # of an earlier version of the project: a table of figures does without
                    tables[revision] = read_scores(path.read_bytes(), f"{revision}: {SCORES_FILE}")
    return tables


def _path_in_cache(repo: Repo, revision: str) -> Path | None:
    command = ["git", "show", "--end-of-options", f"{revision}:./dvc.lock"]  # an experiment may be called --output=x
    lock = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    try:
        outputs = YAML(typ="safe").load(lock.stdout)["stages"]["evaluate"]["outs"]
        (digest,) = (output["md5"] for output in outputs if output["path"] == SCORES_FILE.as_posix())
    except (YAMLError, TypeError, KeyError, ValueError):
        return None
    if not _MD5.fullmatch(str(digest)):
        return None
    return Path(repo.cache.local.oid_to_path(str(digest)))
