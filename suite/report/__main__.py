"""``python -m suite.report [NAME...] [--format html|md|latex|csv]``: a sweep's report again, from what lies on disk.

python -m suite.report                          # the latest sweep under runs/: report.html
python -m suite.report demo                     # the latest sweep of an experiment
python -m suite.report runs/2025-01-31_12-00-00 --format latex > table.tex
python -m suite.report runs/<seed 42> runs/<seed 100> --format md     # one table: mean ± sd over the seeds
"""

import sys

from eval.errors import KeelBenchError
from suite.command_line import one_line_errors, parser_of, runs_folder
from suite.report.find import find_sweep


@one_line_errors
def main() -> int:
    parser = parser_of("suite.report", __doc__)
    parser.add_argument(
        "name", nargs="*", help="a sweep, its folder, or an experiment; default: the latest sweep. Several, one a seed "
        "for example, are one table (not in html)",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=("html", "md", "latex", "csv"), default="html",
        help="html writes report.html into the sweep's folder; the others print the tables: the comparison and, of an "
        "experiment with published figures, those beside ours (in csv a second block behind an empty line)",
    )  # fmt: skip
    options = parser.parse_args()
    sweeps = list(dict.fromkeys(find_sweep(name, runs_folder()) for name in options.name or [None]))
    if options.format == "html":
        from suite.report import write_report
        from suite.report.others import write_other

        if len(sweeps) > 1:
            raise KeelBenchError("html is one sweep's page: name one, or --format md, latex or csv")
        print("\n".join(map(str, write_other(sweeps[0]) or [write_report(sweeps[0])])))
    else:
        from suite.report.text import render

        print(render(sweeps, options.format), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
