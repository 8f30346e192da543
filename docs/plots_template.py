"""Write .dvc/plots.html, the page of `dvc plots show`, with Vega inside it, so that it opens without a network.

For maintainers, to take a newer Vega: `pip install vl-convert-python`, then `python docs/plots_template.py`.
"""

import argparse
from pathlib import Path

import vl_convert

TARGET = Path(__file__).parents[1] / ".dvc/plots.html"

PAGE = """<!doctype html>
<html lang="en">
<head>
{refresh_tag}
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Plots</title>
<style>
  body { margin: 1.5rem auto; padding: 0 1rem; max-width: 76rem; background: #fff; color: #1f2937;
    font: 16px/1.5 system-ui, sans-serif; }
  main { display: flex; flex-wrap: wrap; gap: 2rem; align-items: flex-start; }
  main > div { max-width: 100%; overflow-x: auto; }
  main img { max-width: 100%; height: auto; }
  table { border-spacing: 15px; }
</style>
<!-- Vega, Vega-Lite and Vega-Embed, https://vega.github.io: BSD 3-clause licence, (c) University of Washington Interactive Data Lab. -->
<script>
/*VEGA*/
</script>
</head>
<body>
<h1>Plots</h1>
<main>
{plot_divs}
</main>
</body>
</html>
"""


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    bundle = vl_convert.javascript_bundle().replace("</script", "<\\/script")
    TARGET.write_text(PAGE.replace("/*VEGA*/", bundle), encoding="utf-8")


if __name__ == "__main__":
    main()
