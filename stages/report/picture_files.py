"""metrics/pictures/: PNG files that evaluate draws."""

from collections.abc import Mapping
from pathlib import Path

from stages.artifacts.atomic import atomic_file


def write_pictures(folder: Path, pictures: Mapping[str, bytes]) -> list[Path]:
    """Write each picture under its name; those of an earlier run with other names are deleted."""
    paths = [folder / name for name in pictures]
    for old in set(folder.glob("*.png")) - set(paths):
        old.unlink()
    for path, content in zip(paths, pictures.values(), strict=True):
        with atomic_file(path) as file:
            file.write(content)
    return paths
