"""Write docs/method.md and its pictures from the files in bench/results/method/, and from nothing else.

python bench/report.py          (make report)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from study.document import document
from study.files import PARTS, read_part

from ditf.errors import DitfError
from ditf.types import write_atomically

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "method"
DOCUMENT = ROOT / "docs" / "method.md"


def read(folder: Path) -> dict[str, dict]:
    """part -> result file, of those that are there and measured to the end."""
    found = {part: read_part(folder, part) for part in PARTS}
    return {part: one for part, one in found.items() if one is not None and one.get("complete", True)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python bench/report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--out", type=Path, default=DOCUMENT, help="the report; pictures lie in a folder of its name")
    options = parser.parse_args(arguments)
    try:
        results = read(options.results)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out, document(results, options.out.stem).encode())
        from study.plots import draw

        pictures = draw(results, options.out.with_suffix(""))
    except DitfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.out} and {len(pictures)} pictures; parts: {', '.join(results) or 'none'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
