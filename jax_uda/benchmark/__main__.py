"""The command, and the table that it prints."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterable, Sequence

from jax_uda import commands

HELP = """\
Times what a config does on this machine, with made-up images and a network at random, and prints a table.

  python -m jax_uda.benchmark --config configs/mlsl_gta.py --dtype bfloat16
  python -m jax_uda.benchmark --config configs/cbst_gta.py --against torch --json speed.json
  python -m jax_uda.benchmark --show speed.json

Timed are: train, every kind of train step, the device waited for after each; labels, the parts of labelling the target;
scores; reading, where the data are there. With --against torch train steps alone, in turns with the same steps in
PyTorch, and without augmentation, which PyTorch users have in other processes. Every field of the config is set by
--config.FIELD=VALUE: --config.augmentation.crop='(256, 256)' --config.source_training.batch=2.
"""
PARTS = ("train", "labels", "scores", "reading")


def measure(config, parts: Sequence[str], against: str | None, times: int) -> dict:
  """What the tables are made from: device, versions, the ceiling, and a record for each thing that was timed."""
  import jax

  from jax_uda import check
  from jax_uda.benchmark import parts as timed
  from jax_uda.benchmark import race

  timed.say("ceiling: timing")
  dtype = config.network.dtype
  most = timed.ceiling(dtype)
  if against:
    records = list(race.race(config, times, most))
  else:
    config.weights = ""
    experiment = check.planned(config)[0]
    how = {
      "train": lambda: timed.time_steps(experiment, times, most),
      "labels": lambda: timed.time_labelling(experiment, times),
      "scores": lambda: timed.time_scoring(experiment, times),
      "reading": lambda: timed.time_reading(experiment, times),
    }
    records = [record for part in parts for record in how[part]()]
  names = ("jax", "jaxlib", "flax", *([against] if against else []))
  return {
    "device": timed.device(),
    "devices": jax.device_count(),
    "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}},
    "dtype": dtype,
    "ceiling_flop_per_second": most,
    "records": records,
  }


def table(reports: Iterable[dict]) -> str:
  """Markdown."""
  lines = []
  for report in reports:
    versus = any("torch" in record for record in report["records"])
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    most = report["ceiling_flop_per_second"] / 1e9
    lines += [f"`{report['command']}`", "", f"{report['device']}; {versions}; matrix products: {most:,.0f} GFLOP/s", ""]
    columns = ["", "images", "images/s (quartiles)", "GFLOP", "of the ceiling", "memory", "compiled in"]
    columns += ["PyTorch's images/s (quartiles)", "ratio"] if versus else []
    lines += [_row(columns), _row(["---"] * len(columns))]
    for record in report["records"]:
      cells = [f"{record['part']}: {record['title']}", _images(record), _rate(record)]
      if record["part"] == "train":
        flop, share = record["flop"], record["ceiling_share"]
        cells += [f"{flop / 1e9:,.0f}" if flop else "", f"{share:.0%}" if flop else ""]
        cells += [f"{record['bytes'] / 2**20:,.0f} MiB", f"{record['trace_seconds'] + record['compile_seconds']:.0f} s"]
      else:
        waiting = f"waits {record['waiting']:.0%} of the time for data" if "waiting" in record else ""
        cells += [waiting, "", "", ""]
      if versus:
        cells += [f"{_rate(record['torch'])}, {record['torch']['way']}", f"**{record['ratio']:.2f}**"]
      lines.append(_row(cells))
    lines.append("")
  return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
  return f"| {' | '.join(cells)} |".replace("|  |", "| |")


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
  parser.add_argument("--parts", default=",".join(PARTS), metavar="train,labels", help=f"of {', '.join(PARTS)}")
  parser.add_argument("--against", choices=("torch",), help="compare with PyTorch (pip install 'jax-uda[torch]')")
  parser.add_argument("--steps", type=int, default=20, metavar="N", help="passes that are timed, of each thing")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="what layers compute in; else the config's")
  parser.add_argument("--json", metavar="FILE", help="write all figures here")
  parser.add_argument("--show", nargs="+", metavar="FILE.json", help="print the table of figures that were written")
  given = list(sys.argv[1:] if argv is None else argv)
  flags, overrides = commands.parse(parser, given)
  flags.workdir = None
  if not (flags.config or flags.show):
    parser.error("--config: name the experiment, or files to --show")
  if unknown := [part for part in flags.parts.split(",") if part not in PARTS]:
    parser.error(f"--parts: there is no {unknown[0]!r}, choose from {', '.join(PARTS)}")
  if flags.steps < 1:
    parser.error("--steps: give a number from 1")
  if flags.against and not importlib.util.find_spec("torch"):
    parser.error("--against torch: PyTorch is not there; pip install 'jax-uda[torch]'")
  # On a GPU both sides have to find room.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  from jax_uda import report
  from jax_uda.config import load_config

  def action() -> None:
    import jax

    jax.config.update("jax_enable_compilation_cache", False)  # compiling is timed, too
    if flags.show:
      print(table(map(report.read_json, flags.show)))
      return
    config = load_config(flags.config, overrides)
    if flags.dtype:
      config.network.dtype = flags.dtype
    found = measure(config, flags.parts.split(","), flags.against, flags.steps)
    found["command"] = " ".join(["python -m jax_uda.benchmark", *_without_json(given)])
    if flags.json:
      report.write_json(flags.json, found)
    print(table([report.plain(found)]))

  return commands.exit_status(action, flags, goes_on=False)


def _without_json(given: Sequence[str]) -> list[str]:
  """The flags, less where the figures go, as a shell takes them."""
  import shlex

  places = {i for i, flag in enumerate(given) if flag == "--json" or (i and given[i - 1] == "--json")}
  return [shlex.quote(flag) for i, flag in enumerate(given) if i not in places and not flag.startswith("--json=")]


if __name__ == "__main__":
  sys.exit(main())
