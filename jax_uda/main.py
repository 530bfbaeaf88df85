"""Runs one experiment."""

import sys
from collections.abc import Sequence

from jax_uda import commands

HELP = """\
Adapts a segmentation network to an unlabelled target, as a config file says.

the three commonest commands:
  python -m jax_uda.main --config configs/demo.py --workdir runs/demo
  python -m jax_uda.main --config configs/mlsl_gta.py --check               mlsl_gta.py:code for the released code's reading
  python -m jax_uda.main --config configs/mlsl_camvid.py --config.data_dir=DATA --workdir runs/camvid

Run again with the same config and --workdir, it goes on where it stopped. Any field of the config is set by
--config.FIELD=VALUE; configs/default.py says what there is.
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Parses flags, runs, and returns the exit status."""
  parser = commands.parser("main", HELP)
  parser.add_argument("--config", required=True, metavar="FILE.py", help="the experiment")
  parser.add_argument("--workdir", metavar="DIR", help="where everything goes; needed unless --check")
  parser.add_argument("--check", action="store_true", help="shape-check everything, print the plan, run nothing")
  commands.add_processes(parser)
  flags, overrides = commands.parse(parser, argv)
  if not (flags.workdir or flags.check):
    parser.error("--workdir: name a folder for the run, or use --check")
  commands.check_processes(parser, flags)
  # What imports JAX comes after the flags, so that --help is quick.
  from jax_uda import check, run
  from jax_uda.config import load_config

  def action() -> None:
    config = load_config(flags.config, overrides)
    if flags.check:
      print(check.describe(config))
    else:
      run.run(config, flags.workdir)

  return commands.exit_status(action, flags)


if __name__ == "__main__":
  sys.exit(main())
