"""What the commands share: flags, and ends that a person or a script can tell apart."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from jax_uda.errors import UserError
from jax_uda.stopping import Interrupted

EXIT_MENDABLE, EXIT_STOPPED, EXIT_CTRL_C = 2, 75, 130
EXITS = (
  f"exit status: 0 done, {EXIT_MENDABLE} something that you can mend (one line says what), {EXIT_STOPPED} stopped by "
  f"SIGTERM, {EXIT_CTRL_C} by Ctrl-C"
)


def parser(command: str, description: str) -> argparse.ArgumentParser:
  """The parser of `python -m jax_uda.<command>`: a wrong flag is one line and exit status 2."""
  result = argparse.ArgumentParser(
    f"python -m jax_uda.{command}",
    description=description,
    epilog=EXITS,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  result.error = lambda message: _usage_error(message)
  result.add_argument("--debug", action="store_true", help="show tracebacks")
  return result


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """The flags, and the `--config.FIELD=VALUE` among them as `FIELD=VALUE`; None parses the command line's."""
  flags, rest = parser.parse_known_args(argv)
  overrides = [flag.removeprefix("--config.") for flag in rest if flag.startswith("--config.")]
  if unknown := [flag for flag in rest if not flag.startswith("--config.")]:
    parser.error(f"unknown flag {unknown[0]} (fields of the config are set by --config.FIELD=VALUE, in one word)")
  return flags, overrides


def exit_status(action: Callable[[], object], flags: argparse.Namespace, goes_on: bool = True) -> int:
  """Does it, and says in one line on stderr why it ended early, if it did.

  Args:
    flags: with `debug` and `workdir`.
    goes_on: whether the same command goes on in the workdir, or begins anew.
  """
  again = f"to go on in {flags.workdir}" if goes_on else "to begin anew"
  from absl import logging  # here, so that --help is quick

  logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant here, such as reading another run's weights
  try:
    action()
  except UserError as error:
    if flags.debug:
      raise
    print(f"error: {error}", file=sys.stderr)
    return EXIT_MENDABLE
  except KeyboardInterrupt:
    print(f"interrupted; run the same command again {again}", file=sys.stderr)
    return EXIT_CTRL_C
  except Interrupted:
    print(f"stopped; run the same command again {again}", file=sys.stderr)
    return EXIT_STOPPED
  return 0


def _usage_error(message: str) -> NoReturn:
  print(f"error: {message}; --help tells the flags", file=sys.stderr)
  sys.exit(EXIT_MENDABLE)
