"""The command line: ``hrnet-fast COMMAND``, the commands of ``_COMMANDS``.

Each command is a module with ``add_arguments(parser)`` and ``run(arguments) -> int``, the exit code. What a user got
wrong ends as one line on stderr and exit code 2.
"""

import argparse
import sys
from collections.abc import Sequence

import hrnet_fast
from hrnet_fast.bench import BadInput
from hrnet_fast.cli import bench, convert, evaluate, export, info, patch_report, pose, segment, verify, weights

_COMMANDS = {
    "info": info,
    "verify": verify,
    "bench": bench,
    "patch-report": patch_report,
    "segment": segment,
    "pose": pose,
    "evaluate": evaluate,
    "weights": weights,
    "convert": convert,
    "export": export,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise BadInput(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 all is well, 1 something was off, 2 wrong arguments."""
    parser = _Parser(prog="hrnet-fast", description="HRNet, made fast: what runs here, whether it is right, how fast.")
    parser.add_argument("--version", action="version", version=f"hrnet-fast {hrnet_fast.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(_COMMANDS))
    for name, module in _COMMANDS.items():
        summary = module.__doc__.splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    try:
        arguments = parser.parse_args(argv)
        return _COMMANDS[arguments.command].run(arguments)
    except BadInput as error:
        print(f"hrnet-fast: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hrnet-fast: interrupted", file=sys.stderr)
        return 130
