"""Runs `jax_uda.main` and ends it with SIGKILL at a moment: `python killed_run.py MOMENT FLAGS…`; `never` lets it end."""

import os
import signal
import sys

import orbax.checkpoint as ocp
from orbax.checkpoint._src.path import atomicity

from jax_uda import evaluate, labelling, main, training


def at_call(owner, name: str, number: int, action) -> None:
  """Has the n-th call of a function preceded by an action."""
  function, calls = getattr(owner, name), [0]

  def counting(*args, **kwargs):
    calls[0] += 1
    if calls[0] == number:
      action()
    return function(*args, **kwargs)

  setattr(owner, name, counting)


def die() -> None:
  os.kill(os.getpid(), signal.SIGKILL)


MOMENTS = {
  "never": lambda: None,
  "scoring": lambda: at_call(evaluate, "confusion", 2, die),
  "labelling": lambda: at_call(labelling, "write_png", 3, die),
  # With a checkpoint's files written, and not yet under their final name.
  "saving": lambda: at_call(
    ocp.CheckpointManager, "save", 2, lambda: at_call(atomicity.AtomicRenameTemporaryPath, "finalize", 1, die)
  ),
  "terminated": lambda: at_call(training._Window, "close", 1, lambda: os.kill(os.getpid(), signal.SIGTERM)),
}

if __name__ == "__main__":
  MOMENTS[sys.argv[1]]()
  sys.exit(main.main(sys.argv[2:]))
