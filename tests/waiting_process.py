"""One of several processes that wait for each other without end: `python waiting_process.py FLAGS…`.

It writes `--workdir`/<its number> when they have met, and fails in a way that a user can mend where `mend_<its number>` is
there.
"""

import itertools
import os
import sys
from pathlib import Path

from jax_uda import commands

if __name__ == "__main__":
  os.environ["JAX_PLATFORMS"] = "cpu"
  parser = commands.parser("waiting_process", __doc__)
  parser.add_argument("--workdir", type=Path)
  commands.add_processes(parser)
  flags, _ = commands.parse(parser, None)
  commands.check_processes(parser, flags)
  from jax_uda import parallel, processes
  from jax_uda.errors import UserError

  processes.START_SECONDS = 2

  def action() -> None:
    for number in itertools.count():
      found = parallel.gather({"name": flags.process_id, "some": "x" * (number + 10 * flags.process_id)})
      assert [len(one["some"]) for one in found] == [number, number + 10]
      (flags.workdir / str(flags.process_id)).touch()
      if (flags.workdir / f"mend_{flags.process_id}").exists():
        raise UserError("a file is there; take it away")

  sys.exit(commands.exit_status(action, flags))
