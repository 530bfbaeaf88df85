"""SIGTERM: a run saves what it has and ends."""

import signal
import threading

from jax_uda import parallel


class Interrupted(Exception):
  """SIGTERM came, and all that is worth keeping is saved."""


class StopSignal:
  """A context in which SIGTERM is noted instead of ending the process at once.

  To be entered after `jax.distributed.initialize`, which takes the signal for itself. Outside the main thread (a notebook's
  worker) signals cannot be caught, and nothing is ever noted.
  """

  def __init__(self):
    self._event = threading.Event()

  def __enter__(self) -> "StopSignal":
    self._main = threading.current_thread() is threading.main_thread()
    if self._main:
      self._before = signal.signal(signal.SIGTERM, lambda *_: self._event.set())
    return self

  def __exit__(self, *_) -> None:
    if self._main:
      signal.signal(signal.SIGTERM, self._before)

  def requested(self, agree: bool = False) -> bool:
    """Whether the signal came, to any process. Several have to stop at one place: they ask each other where all `agree`."""
    came = self._event.is_set()
    return came if parallel.is_alone() else agree and any(parallel.gather(came))

  def check(self, agree: bool = False) -> None:
    """Raises `Interrupted` if it is `requested`: called where there is nothing left to save."""
    if self.requested(agree):
      raise Interrupted
