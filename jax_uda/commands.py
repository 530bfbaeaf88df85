"""What the commands share: flags, kept compilations, and ends that a person or a script can tell apart."""

import argparse
import hashlib
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from jax_uda.errors import UserError

KEPT_SECONDS = 0.0  # JAX leaves out by default what compiles within a second, which adds up
KEPT_GIB = 4  # of the disk, beyond which what was not used for longest goes
EXIT_MENDABLE, EXIT_LOST, EXIT_STOPPED, EXIT_CTRL_C = 2, 69, 75, 130
EXITS = (
  f"exit status: 0 done, {EXIT_MENDABLE} something that you can mend (one line says what), {EXIT_STOPPED} stopped by "
  f"SIGTERM, {EXIT_CTRL_C} by Ctrl-C"
)
HEARTBEAT_SECONDS = 30


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


def add_processes(parser: argparse.ArgumentParser) -> None:
  """The flags that make a command one of several processes, on as many hosts; see `processes.start`."""
  about = f"All run the same command and see the same --workdir. Exit status {EXIT_LOST}: another one is gone."
  group = parser.add_argument_group("several processes", about)
  group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0; auto on Cloud TPU, Slurm and Open MPI")
  group.add_argument("--num_processes", type=int, metavar="N", help="in all; not with auto")
  group.add_argument("--process_id", type=int, metavar="I", help="of this one, from 0; not with auto")
  group.add_argument(
    "--heartbeat", type=int, metavar="SECONDS", default=HEARTBEAT_SECONDS, help="of silence, after which one counts as gone"
  )


def check_processes(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
  """Refuses flags of `add_processes` that do not go together; to be called before anything imports JAX."""
  place, num, this = flags.coordinator, flags.num_processes, flags.process_id
  given = [name for name, value in (("--num_processes", num), ("--process_id", this)) if value is not None]
  if place is None:
    if given:
      parser.error(f"{given[0]}: name --coordinator HOST:PORT, too")
    return
  if place == "auto":
    if given:
      parser.error(f"{given[0]}: leave it out, --coordinator auto finds it; or name HOST:PORT")
  elif not re.fullmatch(r".+:\d{1,5}", place) or not 0 < int(place.rpartition(":")[2]) < 2**16:
    parser.error(f"--coordinator: {place!r} will not do; write HOST:PORT of process 0, or auto")
  elif len(given) < 2:
    parser.error("--coordinator HOST:PORT: name --num_processes and --process_id, too")
  elif not 0 <= this < num:
    parser.error(f"--process_id: {this} of --num_processes {num} will not do; count from 0 to {num - 1}")
  if flags.heartbeat < 1:
    parser.error(f"--heartbeat: {flags.heartbeat} will not do; give seconds, at least 1")
  if not flags.debug:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "4")  # else JAX tells of an end in pages of C++


def exit_status(action: Callable[[], object], flags: argparse.Namespace, goes_on: bool = True) -> int:
  """Does it, and says in one line on stderr why it ended early, if it did.

  Args:
    flags: with `debug` and `workdir`, and maybe those of `add_processes`.
    goes_on: whether the same command goes on in the workdir, or begins anew.
  """
  again = f"to go on in {flags.workdir}" if goes_on and flags.workdir else "to begin anew"
  if getattr(flags, "coordinator", None) is None:
    return _exit_status(action, flags, again)
  from jax_uda import processes

  def action_of_several() -> None:
    coordinator = None if flags.coordinator == "auto" else flags.coordinator
    processes.start(coordinator, flags.num_processes, flags.process_id, flags.heartbeat)
    action()

  why = "its own last line may say why, --debug shows what JAX says"
  lost = f"error: another process is gone ({why}); run the same command on all hosts again {again}"
  return processes.ending_together(lambda: _exit_status(action_of_several, flags, again), lost, flags.debug)


def _exit_status(action: Callable[[], object], flags: argparse.Namespace, again: str) -> int:
  from absl import logging  # here, so that --help is quick

  from jax_uda.stopping import Interrupted

  keep_compilations()
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


def leave_devices() -> None:
  """Has JAX compute on CPUs: for commands that look at runs, which may hold the accelerators meanwhile."""
  import jax

  jax.config.update("jax_platforms", "cpu")


def keep_compilations() -> None:
  """Has JAX keep what it compiles, so that a second start is quick, in `~/.cache/jax_uda` (or `$XDG_CACHE_HOME/jax_uda`).

  Left alone where `$JAX_COMPILATION_CACHE_DIR` or a program has set the place already, or where that cannot be written.
  """
  import jax

  if jax.config.jax_compilation_cache_dir is not None:
    return
  folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jax_uda" / _processor()
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", KEPT_SECONDS)
  jax.config.update("jax_compilation_cache_max_size", KEPT_GIB * 2**30)


def _processor() -> str:
  """A name for this kind of processor: homes are shared by machines, and JAX does not tell their programs apart."""
  try:
    about = Path("/proc/cpuinfo").read_text()
  except OSError:
    about = platform.processor()
  told = sorted({line for line in about.splitlines() if line.startswith(("model name", "flags", "Features", "CPU part"))})
  return hashlib.sha256("\n".join(told or [about]).encode()).hexdigest()[:12]


def _usage_error(message: str) -> NoReturn:
  print(f"error: {message}; --help tells the flags", file=sys.stderr)
  sys.exit(EXIT_MENDABLE)
