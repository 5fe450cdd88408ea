"""What a person does with a study besides running it: python -m pipeline <command> --help."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.artifacts.errors import UserError
from pipeline.study.faults import StudyError
from pipeline.study.graph import Graph
from pipeline.study.open import read_study

SCHEMA = Path("docs/study.schema.json")


def check(options: argparse.Namespace) -> None:
    """Validate a study without running it; further files lie over the first."""
    graph = Graph(read_study(options.files))
    counts = {stage: len(folders) for stage, folders in graph.everything().items() if folders}
    print(f"{' + '.join(options.files)}: fine; {graph.root}/ will hold " + ", ".join(f"{stage} {count}" for stage, count in counts.items()))


def schema(options: argparse.Namespace) -> None:
    """Write the JSON Schema of study files, docs/study.schema.json, for editors."""
    from pipeline.study.schema import text

    if options.check:
        if not SCHEMA.is_file() or SCHEMA.read_text(encoding="utf-8") != text():
            raise UserError(f"{SCHEMA} is not what the code says; run: python -m pipeline schema")
        return
    SCHEMA.write_text(text(), encoding="utf-8")
    print(f"{SCHEMA} written")


def clean(options: argparse.Namespace) -> None:
    """Remove artifacts and logs under results/ that no study names any more."""
    from pipeline.commands.clean import clean

    clean(options.configfile, dry_run=options.dry_run, unknown=options.unknown)


def verify(options: argparse.Namespace) -> None:
    """Check every file of every artifact under results/ against its manifest."""
    from pipeline.commands.verify import verify

    verify(options.folder)


def repair(options: argparse.Namespace) -> None:
    """Make one artifact again. What was made from it stays, since the same bytes come back."""
    from pipeline.commands.repair import repair

    repair(options.manifest, options.configfile, options.snakemake)


def run(options: argparse.Namespace) -> None:
    """Run a study on this machine and say what was made; further options go to snakemake."""
    from pipeline.commands.run import run

    run(options.configfile, options.snakemake)


def main() -> None:
    """Parses the command line and runs the command; a user's mistake ends it with its lines and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        added.set_defaults(function=function)
        return added

    command(check).add_argument("files", nargs="+", metavar="FILE", help="study file")
    runs = command(run)
    runs.add_argument("--configfile", nargs="+", metavar="FILE", default=[], help="study file and what lies over it (config.yaml)")
    runs.add_argument("snakemake", nargs="*", metavar="-- OPTION", help="options of snakemake, after --")
    verifies = command(verify)
    verifies.add_argument("folder", nargs="?", type=Path, default=Path("results"), help="where to look; results/ when not given")
    repairs = command(repair)
    repairs.add_argument("manifest", type=Path, help="manifest.json of the artifact")
    repairs.add_argument("--configfile", nargs="+", metavar="FILE", default=[], help="the study; found by its name when not given")
    repairs.add_argument("snakemake", nargs="*", metavar="-- OPTION", help="options of snakemake, such as the cluster's profile, after --")
    cleans = command(clean)
    cleans.add_argument("--configfile", nargs="+", metavar="FILE", default=[], help="a study besides config.yaml and studies/*.yaml")
    cleans.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    cleans.add_argument("--unknown", action="store_true", help="also remove results of studies that are not here")
    schemas = command(schema)
    schemas.add_argument("--check", action="store_true", help="only compare; exit status 1 when the file is out of step")
    options = parser.parse_args()
    try:
        options.function(options)
    except (StudyError, UserError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
