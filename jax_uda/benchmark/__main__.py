"""The command, and the table that it prints."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Sequence

from jax_uda import commands
from jax_uda.errors import UserError

HELP = """\
Times what a config does on this machine, with made-up images and a network at random, and prints a table.

the three commonest commands:
  python -m jax_uda.benchmark --config configs/mlsl_gta.py --dtype bfloat16
  python -m jax_uda.benchmark --config configs/cbst_gta.py --against torch --json speed.json
  python -m jax_uda.benchmark --show speed.json

Timed are: train, every kind of train step, the device waited for after each; labels, the parts of labelling the target
(MLSL's by patches; with --config.sisc.patches=0, by whole images); scores; reading, where the data are there. With
--against torch train steps alone, in turns with the same steps in PyTorch, and without augmentation, which PyTorch
users have in other processes; before, both sides are checked to do the same. GFLOP and memory are what XLA says of a
compiled step, the ceiling is of matrix products measured here. Every field of the config is set by
--config.FIELD=VALUE: --config.augmentation.crop='(256, 256)' --config.source_training.batch=2.
"""
PARTS = ("train", "labels", "scores", "reading")


def measure(config, parts: Sequence[str], against: str | None, times: int, profile: str | None = None) -> dict:
  """What the tables are made from: device, versions, the ceiling, and a record for each thing that was timed."""
  import jax

  from jax_uda import check, parallel
  from jax_uda.benchmark import parts as timed
  from jax_uda.benchmark import race

  timed.say("ceiling: timing")
  dtype = config.network.dtype
  most = timed.ceiling(dtype)
  if against:
    found = race.race(config, times, most)
  else:
    config.weights = ""
    experiment = check.planned(config)[0]
    how = {
      "train": lambda: timed.time_steps(experiment, times, most, profile),
      "labels": lambda: timed.time_labelling(experiment, times),
      "scores": lambda: timed.time_scoring(experiment, times),
      "reading": lambda: timed.time_reading(experiment, times),
    }
    found = (record for part in parts for record in how[part]())
  records, stopped = [], None
  try:
    records += found
  except UserError as error:
    stopped = str(error)
    if not records:
      raise
  names = ("jax", "jaxlib", "flax", *([against] if against else []))
  return {
    "device": parallel.device_name(),
    "devices": jax.device_count(),
    "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}},
    "dtype": dtype,
    "ceiling_flop_per_second": most,
    "peak_bytes": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),  # CPUs do not tell
    "records": records,
    "stopped": stopped,
  }


def table(reports: Sequence[dict]) -> str:
  """Markdown: a table of the reports of each device and set of versions, and below it the commands that its rows are of."""
  lines = []
  for about in dict.fromkeys(map(_about, reports)):
    here = [report for report in reports if _about(report) == about]
    versus = any("torch" in record for report in here for record in report["records"])
    columns = ["", "", "images", "images/s (quartiles)", "GFLOP", "of the ceiling", "memory", "compiled in"]
    columns += ["PyTorch's images/s (quartiles)", "ratio"] if versus else []
    lines += [about, "", _row(columns), _row(["---"] * len(columns))]
    for number, report in enumerate(here, start=1):
      lines += [_row([str(number), *_cells(record, versus)]) for record in report["records"]]
    lines += ["", *(f"{number}. `{report['command']}`" for number, report in enumerate(here, start=1)), ""]
  return "\n".join(lines)


def _about(report: dict) -> str:
  versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
  return f"{report['devices']} × {report['device']}; {versions}; {report['dtype']}"


def _cells(record: dict, versus: bool) -> list[str]:
  cells = [f"{record['part']}: {record['title']}", _images(record), _rate(record)]
  if record["part"] == "train":
    flop, share = record["flop"], record["ceiling_share"]
    cells += [f"{flop / 1e9:,.0f}" if flop else "", f"{share:.0%}" if flop else ""]
    cells += [f"{record['bytes'] / 2**20:,.0f} MiB", f"{record['trace_seconds'] + record['compile_seconds']:.0f} s"]
  else:
    cells += ["", f"waits {record['waiting']:.0%} of the time for data" if "waiting" in record else "", "", ""]
  if versus:
    cells += [f"{_rate(record['torch'])}, {record['torch']['way']}", f"**{record['ratio']:.2f}**"]
  return cells


def _row(cells: Sequence[str]) -> str:
  return f"| {' | '.join(cells)} |".replace("  ", " ")


def _images(record: dict) -> str:
  sizes = dict.fromkeys(f"{height}x{width}" for height, width in record["sizes"].values())
  return f"{record['images']} of {', '.join(sizes)}"


def _rate(record: dict) -> str:
  least, most = (record["images"] / seconds for seconds in reversed(record["seconds"]["quartiles"]))
  digits = 2 if record["images_per_second"] < 10 else 1 if record["images_per_second"] < 100 else 0
  return f"{record['images_per_second']:.{digits}f} ({least:.{digits}f}–{most:.{digits}f})"


def main(argv: Sequence[str] | None = None) -> int:
  """Measures, prints the table, and returns the exit status."""
  parser = commands.parser("benchmark", HELP)
  parser.add_argument("--config", metavar="FILE.py", help="the experiment; needed unless --show")
  parser.add_argument("--parts", metavar="train,labels", help=f"of {', '.join(PARTS)}; without it all of them")
  parser.add_argument("--against", choices=("torch",), help="compare with PyTorch (pip install -e '.[torch]')")
  parser.add_argument("--steps", type=int, default=20, metavar="N", help="passes that are timed, of each thing")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="what layers compute in; else the config's")
  parser.add_argument("--profile", metavar="DIR", help="write traces of train steps here, for Perfetto or TensorBoard")
  parser.add_argument("--json", metavar="FILE", help="write all figures here")
  parser.add_argument("--show", nargs="+", metavar="FILE.json", help="print the table of figures that were written")
  given = list(sys.argv[1:] if argv is None else argv)
  flags, overrides = commands.parse(parser, given)
  flags.workdir = None
  if not (flags.config or flags.show):
    parser.error("--config: name the experiment, or files to --show")
  parts = flags.parts.split(",") if flags.parts else PARTS
  if unknown := [part for part in parts if part not in PARTS]:
    parser.error(f"--parts: there is no {unknown[0]!r}, choose from {', '.join(PARTS)}")
  if flags.steps < 1:
    parser.error("--steps: give a number from 1")
  if flags.against and (flags.profile or flags.parts):
    parser.error("--against: it compares train steps and traces none; leave out --parts and --profile")
  if flags.against and not importlib.util.find_spec("torch"):
    parser.error("--against torch: PyTorch is not there; pip install -e '.[torch]'")
  # On a GPU both sides have to find room.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  from jax_uda import files
  from jax_uda.config import load_config

  def action() -> None:
    import jax

    jax.config.update("jax_enable_compilation_cache", False)  # compiling is timed, too
    if flags.show:
      print(table([files.read_json(path) for path in flags.show]))
      return
    config = load_config(flags.config, overrides)
    if flags.dtype:
      config.network.dtype = flags.dtype
    found = measure(config, parts, flags.against, flags.steps, flags.profile)
    found["command"] = " ".join(["python -m jax_uda.benchmark", *_without_json(given)])
    if flags.json:
      files.write_json(flags.json, found)
    print(table([files.plain(found)]))
    if found["stopped"]:
      raise UserError(found["stopped"])

  return commands.exit_status(action, flags, goes_on=False)


def _without_json(given: Sequence[str]) -> list[str]:
  """The flags, less where the figures go, as a shell takes them."""
  import shlex

  places = {i for i, flag in enumerate(given) if flag == "--json" or (i and given[i - 1] == "--json")}
  return [shlex.quote(flag) for i, flag in enumerate(given) if i not in places and not flag.startswith("--json=")]


if __name__ == "__main__":
  sys.exit(main())
