"""Imported in place of the package when a file of this folder is run by its path, as editors do: prints the right command."""

import sys
from pathlib import Path

if __name__ == "stages":
    sys.exit(f"error: run it as a module, in the project's folder: python -m stages.commands.{Path(sys.argv[0]).stem}")
