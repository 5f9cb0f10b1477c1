"""`python -m codecbench`: see --help."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from codecbench import damage, documents, kvtc, program, speed, tensors
from codecbench.figures import text
from codecbench.judge import Judge
from codecbench.lossless import PEERS
from compare.tables import cpus

ROUNDS, QUICK_ROUNDS = 7, 3


def main() -> int:
    arguments = parse()
    try:
        return int(arguments.do(arguments))
    except (tensors.FileError, documents.DocumentError, program.ProgramError) as error:
        say(f"codecbench: {error}")
        return 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="codecbench",
        description="Codecs for KV caches side by side.\n\nDocuments are\n\n"
        + str(documents.__doc__).split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, do: Any, what: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=what, description=what)
        one.set_defaults(do=do)
        return one

    def output(one: argparse.ArgumentParser) -> None:
        one.add_argument("--json", type=Path, help="where all figures go")
        one.add_argument("--plots", type=Path, help="the folder where plots go")

    def of_speed(one: argparse.ArgumentParser) -> None:
        names = [peer.name for peer in PEERS]
        one.add_argument("--peers", type=words, default=names, help=f"of {','.join(names)}; default: all")
        one.add_argument(
            "--rounds", type=int, default=ROUNDS, help=f"rounds over all codecs; default: {ROUNDS}"
        )
        one.add_argument(
            "--lossless", type=words, help="codecs of Sira's, or nothing; default: all that it has"
        )

    def of_damage(one: argparse.ArgumentParser) -> None:
        one.add_argument("--documents", type=words, default=documents.EVALUATION, help="that judge")
        one.add_argument(
            "--calibration",
            type=words,
            default=documents.CALIBRATION,
            help="documents, or files with KV caches",
        )
        one.add_argument(
            "--moments",
            type=existing,
            help="a file of what errors cost the model; default: measured over the calibration's documents",
        )
        one.add_argument("--methods", type=words, help="baselines; default: all")
        one.add_argument(
            "--bodies",
            type=numbers,
            default=kvtc.BODIES,
            help="how many times smaller plain KVTC makes its body",
        )
        one.add_argument("--lossy", type=words, help="codecs of Sira's, or nothing; default: all that it has")
        one.add_argument(
            "--no-presets",
            dest="presets",
            action="store_false",
            help="the default quality of Sira's codecs alone, not all that they know by name",
        )

    one = command("run", run, "everything, over this machine's documents")
    one.add_argument("--quick", action="store_true", help="fewer rounds, documents and rates")
    of_speed(one)
    of_damage(one)
    output(one)
    one = command("speed", run_speed, "ratio and speed of lossless codecs on the KV caches of files")
    one.add_argument("files", type=Path, nargs="+", metavar="FILE", help="safetensors of bf16, f16 or f32")
    of_speed(one)
    output(one)
    one = command("damage", run_damage, "what lossy codecs do to a model")
    of_damage(one)
    output(one)
    one = command("judge", run_judge, "what a decoded KV cache does to the model")
    one.add_argument("document")
    one.add_argument("decoded", type=Path, help="a safetensors file with axes in its metadata")
    one.add_argument("--original", type=Path, help="default: what the model makes of the document")
    one = command("make", run_make, "files with the KV caches of documents, and where they are")
    one.add_argument("documents", nargs="+", metavar="DOCUMENT")
    one.add_argument(
        "--moments", type=Path, help="also a file of what errors cost the model, over these documents"
    )
    one = command("report", run_report, "measure nothing: show figures again, together")
    one.add_argument("figures", type=Path, nargs="+", metavar="JSON")
    output(one)
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> int:
    if arguments.quick:
        arguments.rounds = min(arguments.rounds, QUICK_ROUNDS)
        arguments.documents, arguments.calibration = arguments.documents[:1], arguments.calibration[::3]
        arguments.bodies, arguments.presets = arguments.bodies[1:3], False
    maker = damage.Maker(damage.folder(), say)
    files = [maker.made(name).file for name in arguments.documents]
    del maker
    return finish(arguments, {"speed": speeds(arguments, files), "damage": damages(arguments)})


def run_speed(arguments: argparse.Namespace) -> int:
    return finish(arguments, {"speed": speeds(arguments, arguments.files)})


def run_damage(arguments: argparse.Namespace) -> int:
    return finish(arguments, {"damage": damages(arguments)})


def run_judge(arguments: argparse.Namespace) -> int:
    maker = damage.Maker(damage.folder(), say)
    original = tensors.cache(tensors.read(arguments.original)) if arguments.original else None
    judge = Judge(maker.model, maker.tokens(arguments.document), original)
    print(json.dumps(asdict(judge.judge(tensors.cache(tensors.read(arguments.decoded))))))
    return 0


def run_make(arguments: argparse.Namespace) -> int:
    maker = damage.Maker(damage.folder(), say)
    for name in arguments.documents:
        print(maker.made(name).file)
    if arguments.moments:
        maker.write_moments(arguments.documents, arguments.moments)
    return 0


def run_report(arguments: argparse.Namespace) -> int:
    whole: dict[str, Any] = {}
    for file in arguments.figures:
        whole |= json.loads(file.read_text())
    return finish(arguments, whole)


def speeds(arguments: argparse.Namespace, files: Sequence[Path]) -> dict[str, Any]:
    ours = arguments.lossless
    if ours is None:
        try:
            ours = program.names(None, lossless=True)
        except program.ProgramError as error:
            say(f"Sira's codecs do not take part: {error}")
            ours = []
    given = [tensors.read(file) for file in files]
    name = " and ".join(
        tensor.metadata.get("document", file.name) for tensor, file in zip(given, files, strict=True)
    )
    return {name: speed.measure(given, arguments.peers, ours, arguments.rounds, say)}


def damages(arguments: argparse.Namespace) -> dict[str, Any]:
    plan = damage.Plan(
        arguments.documents,
        arguments.calibration,
        arguments.methods,
        arguments.bodies,
        arguments.lossy,
        arguments.presets,
        arguments.moments,
    )
    return damage.measure(plan, say)


def finish(arguments: argparse.Namespace, found: dict[str, Any]) -> int:
    """Figures to a file, tables to the terminal, plots to their folder."""
    here = {"cpus": cpus(), "kernel": platform.release(), "python": platform.python_version()}
    whole = {"machine": here, "when": time.strftime("%Y-%m-%d"), **found}
    if arguments.json:
        arguments.json.write_text(json.dumps(whole, indent=1) + "\n")
    print(text(whole))
    if arguments.plots:
        from codecbench.plot import draw

        for file in draw(whole, arguments.plots):
            say(f"drew {file}")
    return 0


def words(value: str) -> list[str]:
    return [word for word in value.split(",") if word]


def existing(value: str) -> Path:
    file = Path(value)
    if not file.is_file():
        raise argparse.ArgumentTypeError(f"{file} is no file")
    return file


def numbers(value: str) -> list[float]:
    return [float(word) for word in words(value)]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
