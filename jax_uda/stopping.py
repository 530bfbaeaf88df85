"""SIGTERM: a run saves what it has and ends."""

import signal
import threading


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

  def requested(self) -> bool:
    """Whether the signal came."""
    return self._event.is_set()

  def check(self) -> None:
    """Raises `Interrupted` if the signal came: called where there is nothing left to save."""
    if self.requested():
      raise Interrupted
