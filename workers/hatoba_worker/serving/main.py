"""The three commands. Only `serve` needs h11, and only what a command needs is imported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hatoba_worker.serving.config import BadConfig, Config, Example, load

USAGE = 78


def main(arguments: Sequence[str]) -> int:
    """`python -m hatoba_worker.serving serve|check|batch`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="hatoba-serving", description="Serves, checks and runs models."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _serve_options(commands.add_parser("serve", help="serve one model over HTTP"))
    _check_options(commands.add_parser("check", help="have a model answer what it has to"))
    _batch_options(commands.add_parser("batch", help="run a model over one shard of items"))
    options = parser.parse_args(arguments)
    try:
        return _COMMANDS[options.command](options)
    except BadConfig as error:
        sys.stderr.write(f"hatoba serving: {error}\n")
        return USAGE


def _serve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, help="JSON file with its settings")


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="directory of the model's files")
    parser.add_argument("--code", type=Path, required=True, help="directory of its code")
    parser.add_argument("--handler", required=True, help="MODULE:CLASS in that code")


def _check_options(parser: argparse.ArgumentParser) -> None:
    _model_options(parser)
    parser.add_argument("--example", type=Path, help="file with an input")
    parser.add_argument("--media-type", default="application/json", help="what the example is")
    parser.add_argument("--golden", type=int, default=0, help="golden cases beside the model")
    parser.add_argument("--report", type=Path, help="JSON file to write what was found to")


def _batch_options(parser: argparse.ArgumentParser) -> None:
    _model_options(parser)
    parser.add_argument("--data", type=Path, required=True, help="directory of the items' files")
    parser.add_argument("--items", type=Path, help="items as JSON lines; else every file is one")
    parser.add_argument("--output", type=Path, required=True, help="where predictions are put")
    parser.add_argument("--on-item-error", choices=("fail", "record"), default="fail")
    parser.add_argument("--max-errors", type=int, help="recorded errors of this shard at most")


def _serve(options: argparse.Namespace) -> int:
    from hatoba_worker.serving.server import serve

    config = load(options.config)
    return serve(config, lambda host, port: _announce(config, host, port))


def _announce(config: Config, host: str, port: int) -> None:
    if config.ready_file is not None:
        from hatoba_worker.serving.files import write_ready_file

        write_ready_file(config.ready_file, host, port, tls=config.tls is not None)


def _check(options: argparse.Namespace) -> int:
    from hatoba_worker.serving.check import Asked, check

    example = Example(options.example, options.media_type) if options.example else None
    asked = Asked(example, options.golden)
    return check(options.handler, options.code, options.model, asked, options.report)


def _batch(options: argparse.Namespace) -> int:
    from hatoba_worker.serving.batch import Options, batch

    wanted = Options(
        data=options.data,
        output=options.output,
        items=options.items,
        on_item_error=options.on_item_error,
        max_errors=options.max_errors,
    )
    return batch(options.handler, options.code, options.model, wanted)


_COMMANDS = {"serve": _serve, "check": _check, "batch": _batch}
