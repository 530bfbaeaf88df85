"""Runs one experiment."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from jax_uda.errors import UserError

HELP = """\
Adapts a segmentation network to an unlabelled target, as a config file says.

the three commonest commands:
  python -m jax_uda.main --config configs/demo.py --workdir runs/demo
  python -m jax_uda.main --config configs/mlsl_gta.py --check
  python -m jax_uda.main --config configs/mlsl_camvid.py --config.data_dir=DATA --workdir runs/camvid

Run again with the same config and --workdir, it goes on where it stopped. Any field of the config is set by
--config.FIELD=VALUE; configs/default.py says what there is.

exit status: 0 done, 2 something that you can mend (one line says what), 75 stopped by SIGTERM with everything saved.
"""

EXIT_MENDABLE, EXIT_STOPPED, EXIT_CTRL_C = 2, 75, 130


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """The flags, and the `--config.FIELD=VALUE` among them as `FIELD=VALUE`."""
  parser = argparse.ArgumentParser(
    "python -m jax_uda.main", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.error = lambda message: _usage_error(message)
  parser.add_argument("--config", required=True, metavar="FILE.py", help="the experiment")
  parser.add_argument("--workdir", metavar="DIR", help="where everything goes; needed unless --check")
  parser.add_argument("--check", action="store_true", help="shape-check everything, print the plan, run nothing")
  parser.add_argument("--debug", action="store_true", help="show tracebacks")
  flags, rest = parser.parse_known_args(argv)
  overrides = [flag.removeprefix("--config.") for flag in rest if flag.startswith("--config.")]
  if unknown := [flag for flag in rest if not flag.startswith("--config.")]:
    parser.error(f"unknown flag {unknown[0]} (fields of the config are set by --config.FIELD=VALUE, in one word)")
  if not (flags.workdir or flags.check):
    parser.error("--workdir: name a folder for the run, or use --check")
  return flags, overrides


def _usage_error(message: str) -> NoReturn:
  print(f"error: {message}; --help tells the flags", file=sys.stderr)
  sys.exit(EXIT_MENDABLE)


def main(argv: Sequence[str] | None = None) -> int:
  """Parses flags, runs, and returns the exit status."""
  flags, overrides = parse(sys.argv[1:] if argv is None else argv)
  # What imports JAX comes after the flags, so that --help is quick.
  from jax_uda import check, run
  from jax_uda.config import load_config
  from jax_uda.stopping import Interrupted

  try:
    config = load_config(flags.config, overrides)
    if flags.check:
      print(check.describe(config))
    else:
      run.run(config, flags.workdir)
  except UserError as error:
    if flags.debug:
      raise
    print(f"error: {error}", file=sys.stderr)
    return EXIT_MENDABLE
  except KeyboardInterrupt:
    print(f"interrupted; run the same command again to go on from the last checkpoint in {flags.workdir}", file=sys.stderr)
    return EXIT_CTRL_C
  except Interrupted:
    print(f"stopped; run the same command again to go on in {flags.workdir}", file=sys.stderr)
    return EXIT_STOPPED
  return 0


if __name__ == "__main__":
  sys.exit(main())
