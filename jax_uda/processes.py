"""Processes: how several become one run, and how all of them end when one does.

Where another process is gone, what waits for it raises (Gloo) or hangs (NCCL), and after a while JAX ends the process by
abort(), with pages of C++. Either way the user gets one line and an exit status here, and nobody waits for ever.
"""

import contextlib
import ctypes
import os
import re
import signal
import socket
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable

import jax

from jax_uda.commands import EXIT_LOST, EXIT_MENDABLE
from jax_uda.errors import UserError

START_SECONDS = 150  # that each process waits for the others; JAX tries for up to twice as long
END_SECONDS = 5  # that one which ends early waits for the others to end alike

# How JAX reports that another process is gone: collectives on CPU and GPU, the coordinator's barriers and key-value store.
GONE = re.compile(r"gloo|nccl|connection (closed|reset|refused)|socket closed|heartbeat|barrier|coordination", re.I)

_last_words = ["", 1]  # what to say, and the status to exit with, when JAX aborts this process
_ending = threading.Lock()  # never let go: who comes second waits for the end


def start(coordinator: str | None, num_processes: int | None, process_id: int | None, heartbeat: int) -> None:
  """Makes this process one of several; to be called before anything else of JAX.

  Args:
    coordinator: HOST:PORT, where process 0 is and may listen; None: JAX finds it and the next two, in clusters it knows.
    num_processes: in all.
    process_id: of this one, from 0.
    heartbeat: seconds after which a process of which nothing is heard counts as gone.

  Raises:
    UserError: JAX finds no cluster, or processes do not fit together. Where the coordinator cannot be reached, or not all
      come, JAX aborts: see `ending_together`.
  """
  flag = f"--coordinator {coordinator or 'auto'}"
  if coordinator and process_id == 0:
    _refuse_taken_port(flag)
  # The service would take SIGTERM for itself; StopSignal has that.
  jax.config.update("jax_enable_preemption_service", False)
  later = list(_last_words)
  _last_words[:] = (
    f"error: {flag}: it cannot be reached, or not all processes came in time; see that process 0 runs there, that the port "
    "is open, and that all were started with the same --num_processes",
    EXIT_MENDABLE,
  )
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      initialization_timeout=START_SECONDS,
      heartbeat_timeout_seconds=heartbeat,
    )
  except Exception as error:  # of many kinds, by cluster
    advice = "see that the address is right" if coordinator else "name HOST:PORT, --num_processes and --process_id"
    raise UserError(f"{flag}: JAX finds no way ({str(error).partition('.')[0]}); {advice}") from error
  _last_words[:] = later
  devices = Counter(device.process_index for device in jax.devices())
  if len(set(devices.values())) > 1:
    raise UserError(f"{flag}: the processes have {[devices[i] for i in sorted(devices)]} devices; give all as many")
  if jax.process_index():
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - all have the same to say, and process 0 says it


def _refuse_taken_port(flag: str) -> None:
  """Raises UserError where process 0 could not listen: JAX would end in a segmentation fault."""
  port = int(flag.rpartition(":")[2])
  try:
    socket.create_server(("", port)).close()
  except OSError as error:
    raise UserError(f"{flag}: process 0 cannot listen there ({error.strerror}); choose another port") from error


def ending_together(action: Callable[[], int], lost: str, debug: bool) -> int:
  """Does what gives an exit status, as one of several processes, none of which may leave the others waiting.

  Args:
    action: calls `start` first.
    lost: what to say where another process is gone, with `EXIT_LOST`.
    debug: whether to show, too, where that was noticed.
  """
  _last_words[:] = lost, EXIT_LOST
  ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)
  try:
    result = action()
  except Exception as error:
    gone = not isinstance(error, OSError) and GONE.search(str(error))  # a disk may reset connections, too
    if debug or not gone:
      traceback.print_exc()
    if gone:
      _end(lost, EXIT_LOST)
    result = 1
  _leave(result)
  return result


def _leave(status: int) -> None:
  """Parts from the others; where they do not part soon, ends the process, which ends theirs."""
  _last_words[:] = "", status

  def part():
    with contextlib.suppress(Exception):
      jax.distributed.shutdown()

  parting = threading.Thread(target=part, daemon=True)
  parting.start()
  parting.join(END_SECONDS)
  if parting.is_alive():
    _end("", status)


def _end(line: str, status: int) -> None:
  """Says a line and exits at once; of several threads that come here, one is heard."""
  _ending.acquire()
  with contextlib.suppress(Exception):
    sys.stdout.flush()
  if line:
    os.write(2, f"{line}\n".encode())
  os._exit(status)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
  _end(*_last_words)
