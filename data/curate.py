"""Curates documents: keeps the good ones, once each, without what identifies people or gives evaluations away.

    python data/curate.py --config production --input PATH ... --output_dir DIR [--workers N]
    python data/c4/prepare.py --input DIR/documents ...

DIR gets the documents that are left, report.html with counts and samples of what was removed, and manifest.json.
Started again after a kill, it goes on. --config quick reads the first 1,000 documents of each file.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"  # datatrove's bars, beside what is said here; read when tqdm is imported
sys.path.pop(0)  # this folder, in which `tokenizers` is not the library
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository: this script is called by its path

from common.errors import ArgumentParser, UserError, exit_cleanly, positive
from data.curation.recipe import RECIPES, Needs, Recipe, read_recipe
from data.documents import find_files
from data.estimate import add_estimate, tell, wanted_from
from data.parts import FilePart
from data.preparation import add_split_by
from data.tokenizers import choose

INSTALL = "pip install -e '.[curation]'"


@exit_cleanly
def main() -> None:
    arguments = parse_arguments()
    recipe = read_recipe(arguments.config)
    needs = needed(arguments, recipe)
    parts = [FilePart(path, arguments.text_key, arguments.split_by) for path in find_files(arguments.input)]
    wanted = wanted_from(arguments, arguments.workers)
    if not wanted and not arguments.output_dir:
        raise UserError("--output_dir is missing: where to write")
    check_packages()
    from data.curation.run import curate
    from data.curation.stages import Plan

    plan = Plan(arguments.output_dir, tuple(parts), recipe, needs)
    if not wanted:
        curate(plan, arguments.workers, on=machines(arguments))
        return
    from data.curation.estimate import measure_curation

    tell(
        measure_curation(plan, choose(arguments.tokenizer), arguments.sample_documents), wanted, arguments.save_estimate
    )


def parse_arguments() -> argparse.Namespace:
    built = ArgumentParser(__doc__)
    add = built.add_argument
    names = " or ".join(RECIPES)
    add("--config", default="production", metavar="C", help=f"{names} (default: production), or a .toml of values")
    add("--input", nargs="+", required=True, metavar="PATH", help="files, folders or patterns, as of prepare scripts")
    add("--output_dir", type=Path, metavar="DIR", help="where to write")
    workers = max(1, (os.cpu_count() or 1) // 2)
    add("--workers", type=positive, default=workers, metavar="N", help="at once (default: half the cores)")
    help = "where tasks run: processes of this machine (default), or jobs of a cluster"
    add("--executor", choices=("processes", "slurm", "ray"), default="processes", help=help)
    add("--sbatch", nargs="+", default=[], metavar="KEY=VALUE", help="options of sbatch: partition=P time=T ...")
    add("--good", nargs="+", metavar="PATH", help="files of good documents, to score others by")
    add("--bad", nargs="+", metavar="PATH", help="files of bad documents")
    add("--bad_words", type=Path, metavar="FILE", help="a word a line; a document with one of them goes")
    add("--evaluation", nargs="+", metavar="PATH", help="files of texts that no document may share words in a row with")
    add("--text_key", default="text", metavar="NAME", help="of the text in JSON and Parquet (default: text)")
    add_split_by(built)
    add_estimate(built, "--workers", "of what is read")
    add(
        "--tokenizer",
        default="tiktoken:gpt2",
        metavar="T",
        help="whose tokens an estimate counts (default: tiktoken:gpt2)",
    )
    return built.parse_args()


def machines(arguments: argparse.Namespace) -> Any:
    """Where --executor has tasks run: an `On` of execution.py, or None for this machine. Raises UserError."""
    if arguments.sbatch and arguments.executor != "slurm":
        raise UserError("--sbatch is for --executor slurm: give that, too, or leave it out")
    if arguments.executor == "processes":
        return None
    from data.curation.clusters import on_ray, on_slurm

    return on_ray if arguments.executor == "ray" else on_slurm(arguments.sbatch)


def needed(arguments: argparse.Namespace, recipe: Recipe) -> Needs:
    """The files of steps that need some. Raises UserError."""
    if arguments.bad and not arguments.good:
        raise UserError("--bad: a score needs --good examples, too")
    if arguments.good and not arguments.bad and recipe.quality_by == "classifier":
        raise UserError(
            '--good: a classifier needs --bad examples, too; quality_by = "perplexity" in a --config does not'
        )
    if arguments.bad_words and not arguments.bad_words.is_file():
        raise UserError(f"--bad_words: there is no file {arguments.bad_words}")
    given = (arguments.good, arguments.bad, arguments.evaluation)
    good, bad, evaluation = (tuple(find_files(inputs or [])) for inputs in given)
    return Needs(good, bad, arguments.bad_words, evaluation)


def check_packages() -> None:
    """Raises UserError for one that is not there, or too new for datatrove."""
    try:
        import datatrove  # noqa: F401
        import orjson  # noqa: F401
        import py3langid  # noqa: F401
        import xxhash
        import zstandard  # noqa: F401
    except ImportError as error:
        raise UserError(f"this needs the {error.name} package: {INSTALL}") from None
    if int(xxhash.VERSION.split(".")[0]) > 3:
        raise UserError(f"xxhash {xxhash.VERSION} hashes no text, which datatrove gives it: {INSTALL}")


if __name__ == "__main__":
    main()
