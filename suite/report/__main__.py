"""``python -m suite.report [NAME] [--format html|md|latex|csv]``: a sweep's report again, from what lies on disk.

python -m suite.report                          # the latest sweep under runs/: report.html
python -m suite.report demo                     # the latest sweep of an experiment
python -m suite.report runs/2025-01-31_12-00-00 --format latex > table.tex
"""

import sys

from suite.command_line import one_line_errors, parser_of, runs_folder
from suite.report.find import find_sweep


@one_line_errors
def main() -> int:
    parser = parser_of("suite.report", __doc__)
    parser.add_argument("name", nargs="?", help="a sweep, its folder, or an experiment; default: the latest sweep")
    parser.add_argument(
        "--format", choices=("html", "md", "latex", "csv"), default="html",
        help="html writes report.html into the sweep's folder; the others print the tables: the comparison and, of an "
        "experiment with published figures, those beside ours (in csv a second block behind an empty line)",
    )  # fmt: skip
    options = parser.parse_args()
    sweep = find_sweep(options.name, runs_folder())
    if options.format == "html":
        from suite.report import write_report
        from suite.report.others import write_other

        print("\n".join(map(str, write_other(sweep) or [write_report(sweep)])))
    else:
        from suite.report.text import render

        print(render(sweep, options.format), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
