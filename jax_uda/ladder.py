"""A ladder: variants of a config times seeds, run one after the other and set side by side in a table and a figure.

the three commonest commands:
  python -m jax_uda.ladder --config configs/mlsl_camvid.py --variants configs/ladders/self_training.py --workdir runs/ladder
  python -m jax_uda.ladder --config configs/demo.py --variants FILE.py --seeds 0,1,2 --workdir runs/mine --only MLSL
  python -m jax_uda.ladder --config configs/demo.py --variants FILE.py --seeds 0,1,2 --workdir runs/mine --table

`FILE.py` says what each variant sets in the config; `config` names another config file to set it in:

    def get_variants():
      return {
        "source only": {"mode": "source_only"},
        "CBST": {"config": "configs/cbst_camvid.py", "labels.portion": 0.3},
        "MLSL": {},
        "oracle": {"mode": "oracle"},
      }

    BASELINE, CEILING = "source only", "oracle"      # may be left out: the others are measured between them

Each variant and seed is a run in `DIR/seed_<s>/<variant>`. The first one of a seed trains the source stage, and those with
equal source settings take it over. Run again, it goes on where it stopped. After every run it writes ladder.json,
ladder.md, ladder.csv (IoU by class) and ladder.png.
"""

import contextlib
import io
import math
import re
import statistics
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from etils import epath
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from tqdm import tqdm

from jax_uda import charts, checkpoint, commands, evaluate, files, run
from jax_uda.config import differences, load_config, user_file
from jax_uda.errors import UserError
from jax_uda.experiment import open_experiment, refuse_other_run, refuse_stop_after, source_settings

# --- variants -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variants:
  """What a variants file says.

  Attributes:
    fields: what each variant sets, by its printed name, in the table's order.
    baseline, ceiling: the variants that the others are measured between; None if the file names none.
  """

  fields: Mapping[str, Mapping[str, Any]]
  baseline: str | None = None
  ceiling: str | None = None


def load_variants(file: str) -> Variants:
  """Reads a variants file, which is looked for as config files are.

  Raises:
    UserError: no such file, it breaks, or what it gives will not do.
  """
  with user_file("--variants", file, "write one with get_variants(), as --help shows") as names:
    fields = names["get_variants"]() if "get_variants" in names else None
    if not (isinstance(fields, Mapping) and fields and all(isinstance(one, Mapping) for one in fields.values())):
      raise UserError("it needs get_variants() -> {name: {field: value}}, with one at least")
    folders: dict[str, str] = {}
    for name in fields:
      if not slug(name):
        raise UserError(f"{name!r} makes no folder's name; put letters or digits in it")
      if (other := folders.setdefault(slug(name), name)) != name:
        raise UserError(f"{other!r} and {name!r} would share the folder {slug(name)}; let letters or digits differ")
    for role in ("BASELINE", "CEILING"):
      if names.get(role) is not None and names[role] not in fields:
        raise UserError(f"{role} is {names[role]!r}; choose one of {', '.join(fields)}")
  return Variants(fields, names.get("BASELINE"), names.get("CEILING"))


def slug(name: str) -> str:
  """A variant's name as a folder's."""
  return re.sub(r"[^\w.]+", "-", name.lower()).strip("-.")


def variant_config(file: str, overrides: Sequence[str], variants: Variants, name: str, seed: int) -> ConfigDict:
  """The config of a run: the file's or the variant's own, with the command line's fields, the variant's, and the seed.

  Raises:
    UserError: a field or value that does not fit, in which variant.
  """
  fields = {"config": file, **variants.fields[name]}
  file = fields.pop("config")
  set_here = [f"{field}={value if isinstance(value, str) else repr(value)}" for field, value in fields.items()]
  with _of_variant(name):
    if any(override.partition("=")[0] == "seed" for override in (*overrides, *set_here)):
      raise UserError("--config.seed: --seeds sets it; leave it out")
    config = load_config(file, [*overrides, *set_here, f"seed={seed}"])
    refuse_stop_after(config, "the runs of a ladder")
    return config


@contextlib.contextmanager
def _of_variant(name: str) -> Iterator[None]:
  """Has what a user can mend say in which variant it is."""
  try:
    yield
  except UserError as error:
    raise UserError(f"variant {name!r}: {error}") from error


# --- runs -----------------------------------------------------------------------------------------------------------


def run_dir(workdir: epath.PathLike, seed: int, name: str) -> epath.Path:
  """Where the run of a variant and seed lies."""
  return epath.Path(workdir) / f"seed_{seed}" / slug(name)


def finished(workdir: epath.Path) -> dict[str, Any] | None:
  """What results.json of a run holds, if it has come to its end."""
  results = _results(workdir)
  return results if results.get("final") else None


def _results(workdir: epath.Path) -> dict[str, Any]:
  path = workdir / "results.json"
  return files.read_json(path) if path.exists() else {}


def source_run(config: ConfigDict, workdir: epath.Path, others: Sequence[epath.Path]) -> str:
  """Where a run takes its first stage from, as `config.start_from`; empty if it is to train its own.

  That is where it took it from when it began, so that it goes on wherever the ladder has been moved to; else what its
  config says; else the first of the other runs that has finished such a stage.

  Args:
    config, workdir: the run's.
    others: the runs of the same seed.
  """
  if (workdir / "config.json").exists():
    return files.read_json(workdir / "config.json").get("start_from", "")
  if config.start_from:
    return config.start_from
  mine = source_settings(files.plain(config.to_dict()))
  for other in others:
    results = _results(other)
    steps = [stage["steps"] for stage in results.get("stages", [])[:1] if stage["name"] == "source"]
    kept = checkpoint.kept_ends(other / "checkpoints", steps)
    if kept and not differences(source_settings(results["config"]), mine):
      return str(other.resolve())
  return ""


def ladder(
  file: str,
  variants: Variants,
  seeds: Sequence[int],
  workdir: epath.PathLike,
  overrides: Sequence[str] = (),
  only: Collection[str] | None = None,
) -> dict[str, Any]:
  """Runs what is left of the variants and seeds; after each run, writes how all of them compare.

  Args:
    file: the config file.
    variants: see `load_variants`.
    seeds: of the runs; the outer loop.
    workdir: where everything goes. Runs that are finished are not run again, and an unfinished one goes on.
    overrides: `field=value` of the config, each, for all variants.
    only: the variants to run, all if None; those that are there are compared in any case.

  Returns:
    What ladder.json holds, see `summarise`.

  Raises:
    UserError: a config does not fit, which is found before the first run starts; a run cannot go on; or none is there.
    Interrupted: SIGTERM came.
  """
  base, workdir = load_config(file, overrides), epath.Path(workdir)
  configs = {(s, name): variant_config(file, overrides, variants, name, s) for s in seeds for name in variants.fields}
  dirs = {place: run_dir(workdir, *place) for place in configs}
  for place, config in configs.items():
    if (dirs[place] / "config.json").exists():
      config.start_from = source_run(config, dirs[place], ())
      refuse_other_run(config, dirs[place])
  chosen = [place for place in configs if only is None or place[1] in only]
  left = [place for place in chosen if finished(dirs[place]) is None]
  for name, config in {name: configs[seed, name] for seed, name in left}.items():
    with _of_variant(name), contextlib.redirect_stdout(io.StringIO()):  # what it says, each run says again
      open_experiment(config)
  summary = None
  for i, (seed, name) in enumerate(left):
    clock = _time_left(left[i:], {place: results["seconds"] for place in configs if (results := finished(dirs[place]))})
    print(f"seed {seed} · {name} ({chosen.index((seed, name)) + 1} of {len(chosen)}){clock}", flush=True)
    config = configs[seed, name]
    config.start_from = source_run(config, dirs[seed, name], [dirs[seed, other] for other in variants.fields])
    run.run(config, dirs[seed, name])
    summary = write(workdir, summarise(base, variants, seeds, workdir))
  return summary or write(workdir, summarise(base, variants, seeds, workdir))


def _time_left(left: Sequence[tuple[int, str]], seconds: Mapping[tuple[int, str], float]) -> str:
  """How long the runs that are left will take if each takes what others took: those of its variant, or else all."""
  if not seconds:
    return ""
  of_variant = {name: [took for (_, other), took in seconds.items() if other == name] for _, name in left}
  total = sum(statistics.fmean(of_variant[name] or seconds.values()) for _, name in left)
  return f" · about {tqdm.format_interval(total)} left"


# --- results --------------------------------------------------------------------------------------------------------


def compare(
  scores: Mapping[str, Mapping[int, float]], baseline: str | None = None, ceiling: str | None = None
) -> dict[str, dict[str, Any]]:
  """Mean, deviation and share of the gap closed.

  Args:
    scores: by variant and seed; what is not known is left out.
    baseline, ceiling: the variants b and c that the gap lies between.

  Returns:
    By variant {"mean", "deviation": the sample's (n - 1), "gap_closed", "gap_closed_by_seed"}. A variant v closes the share
    (v - b) / (c - b); over all by the means over those seeds that the three of them have. None where undefined.
  """
  low, high = scores.get(baseline, {}), scores.get(ceiling, {})
  found = {}
  for name, mine in scores.items():
    shared = [seed for seed in mine if seed in low and seed in high]
    found[name] = {
      "mean": statistics.fmean(mine.values()) if mine else None,
      "deviation": statistics.stdev(mine.values()) if len(mine) > 1 else None,
      "gap_closed": _share(*(sum(one[seed] for seed in shared) for one in (mine, low, high))),
      "gap_closed_by_seed": {seed: _share(mine[seed], low[seed], high[seed]) for seed in shared},
    }
  return found


def _share(value: float, low: float, high: float) -> float | None:
  return None if high == low else (value - low) / (high - low)


def summarise(config: ConfigDict, variants: Variants, seeds: Sequence[int], workdir: epath.PathLike) -> dict[str, Any]:
  """What ladder.json holds, from the runs that are finished.

  Returns:
    {"config", "protocol", "seeds", "baseline", "ceiling", "variants": {name: {"overrides", "seeds": {seed: {"source": mIoU
    after the first stage, "final", "pixel_accuracy", "iou": by class, "seconds"}}, and what `compare` finds in "final"}}};
    all scores are fractions in 0..1.
  """
  runs = {name: {s: r for s in seeds if (r := finished(run_dir(workdir, s, name)))} for name in variants.fields}
  scores = {
    name: {seed: results["final"]["miou"] for seed, results in mine.items() if results["final"]["miou"] is not None}
    for name, mine in runs.items()
  }
  compared = compare(scores, variants.baseline, variants.ceiling)
  return files.plain({
    "config": config.to_dict(),
    "protocol": ", ".join(dict.fromkeys(results["protocol"] for mine in runs.values() for results in mine.values())),
    "seeds": seeds,
    "baseline": variants.baseline,
    "ceiling": variants.ceiling,
    "variants": {
      name: {
        "overrides": variants.fields[name],
        "seeds": {seed: _entry(results) for seed, results in mine.items()},
        **compared[name],
      }
      for name, mine in runs.items()
    },
  })


def _entry(results: Mapping[str, Any]) -> dict[str, Any]:
  first, final = results["stages"][0], results["final"]
  return {
    "source": first["miou"],
    "final": final["miou"],
    "pixel_accuracy": final["pixel_accuracy"],
    "iou": final["iou"],
    "seconds": results["seconds"],
  }


def write(workdir: epath.Path, summary: dict[str, Any]) -> dict[str, Any]:
  """Writes ladder.json, .md, .csv and .png, and prints the table; returns the summary.

  Raises:
    UserError: there is nothing to write yet.
  """
  runs = {
    f"{name}, seed {seed}": entry["iou"]
    for name, variant in summary["variants"].items()
    for seed, entry in variant["seeds"].items()
  }
  if not runs:
    raise UserError(f"--workdir: {workdir} holds no finished run of these variants and seeds; leave out --table")
  classes = list(dict.fromkeys(name for iou in runs.values() for name in iou))
  text, image = table(summary), io.BytesIO()
  with matplotlib.rc_context(charts.STYLE):
    draw(summary).savefig(image, format="png", dpi=150, metadata={"Software": None})
  files.write_json(workdir / "ladder.json", summary)
  files.write_atomically(workdir / "ladder.md", text.encode())
  evaluate.write_table(
    workdir / "ladder.csv", {run: {name: iou.get(name) for name in classes} for run, iou in runs.items()}
  )
  files.write_atomically(workdir / "ladder.png", image.getvalue())
  print(f"\n{text}", flush=True)
  return summary


def table(summary: Mapping[str, Any]) -> str:
  """mIoU in % as a Markdown table, a row a variant, which a terminal shows in columns too."""
  seeds, between = list(map(str, summary["seeds"])), bool(summary["baseline"] and summary["ceiling"])
  figures = ["mean", "deviation", "pixel accuracy", *["gap closed in %"] * between]
  rows = [["variant", *(f"seed {seed}" for seed in seeds), *figures]]
  for name, variant in summary["variants"].items():
    finals = [variant["seeds"].get(seed, {}).get("final") for seed in seeds]
    known = [entry["pixel_accuracy"] for entry in variant["seeds"].values() if entry["pixel_accuracy"] is not None]
    accuracy = statistics.fmean(known) if known else None
    row = [name.replace("|", "\\|"), *map(_percent, (*finals, variant["mean"], variant["deviation"], accuracy))]
    if between:
      each = ", ".join(_percent(variant["gap_closed_by_seed"].get(seed)) for seed in seeds)
      known = len(seeds) > 1 and variant["gap_closed"] is not None
      row.append(_percent(variant["gap_closed"]) + (f" ({each})" if known else ""))
    rows.append(row)
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
  lines = [" | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
  words = f"mIoU in %, {summary['protocol']}, after the last stage; the deviation is the sample's, the accuracy the mean."
  if between:
    words += f" The gap is that from {summary['baseline']} to {summary['ceiling']}: by the means, and by seed."
  return "\n".join([words, "", *(f"| {line} |" for line in lines), ""])


def _percent(fraction: float | None) -> str:
  return "–" if fraction is None else f"{100 * fraction:.1f}"


def draw(summary: Mapping[str, Any]) -> Figure:
  """The variants from top to bottom: a bar to the mean, a dot a seed, lines at baseline and ceiling."""
  variants = summary["variants"]
  figure = Figure(figsize=(charts.CHART_WIDTH, 1.3 + 0.36 * len(variants)))
  axes = figure.subplots()
  means = [math.nan if variant["mean"] is None else 100 * variant["mean"] for variant in variants.values()]
  axes.barh(range(len(means)), means, 0.66, color=charts.BEFORE, edgecolor=charts.AFTER, linewidth=0.6, label="mean")
  dots = [
    (100 * entry["final"], row)
    for row, variant in enumerate(variants.values())
    for entry in variant["seeds"].values()
    if entry["final"] is not None
  ]
  places = [[dot[axis] for dot in dots] for axis in (0, 1)]
  axes.plot(*places, "o", color=charts.AFTER, markersize=6, markeredgecolor="white", label="a seed")
  for role, line in (("baseline", "--"), ("ceiling", "-.")):
    if (name := summary[role]) and (mean := variants[name]["mean"]) is not None:
      axes.axvline(100 * mean, color="#111111", linewidth=1.2, linestyle=line, label=name)
  for row, variant in enumerate(variants.values()):
    spread = "" if variant["deviation"] is None else f" ± {_percent(variant['deviation'])}"
    words = _percent(variant["mean"]) + spread
    axes.text(1.0, row, words, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=10)
  largest = max([x for x, _ in dots], default=100)
  axes.set_xlim(0, 1.3 * largest)  # the numbers stand right of the bars
  axes.set_ylim(len(means) - 0.4, -0.6)
  axes.set_yticks(range(len(means)), variants)
  axes.set_xticks([tick for tick in range(0, 101, 10) if tick <= largest + 5])
  axes.tick_params(axis="y", length=0)
  axes.grid(axis="y", visible=False)
  axes.set_xlabel(f"mIoU in %, {summary['protocol']}")
  figure.legend(loc="outside upper left", ncols=4)
  return figure


# --- the command ----------------------------------------------------------------------------------------------------


def _seeds(text: str) -> list[int]:
  parts = [part.strip() for part in text.split(",")]
  if not all(part.isdecimal() for part in parts):
    raise UserError(f"--seeds: {text!r} will not do; write whole numbers with commas between, as 0,1")
  return list(dict.fromkeys(map(int, parts)))


def _only(text: str, variants: Variants) -> list[str]:
  """The variants that `--only` names, by their names or their folders'."""
  known = {slug(name): name for name in variants.fields}
  parts = [text] if text in variants.fields else text.split(",")
  for part in parts:
    if slug(part) not in known:
      raise UserError(f"--only: there is no variant {part!r}; choose from {', '.join(variants.fields)}")
  return [known[slug(part)] for part in parts]


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the ladder and returns the exit status."""
  parser = commands.parser("ladder", __doc__)
  parser.add_argument("--config", required=True, metavar="FILE.py", help="the experiment")
  parser.add_argument("--variants", required=True, metavar="FILE.py", help="what is varied in it")
  parser.add_argument("--seeds", default="0", metavar="0,1", help="a run of every variant each; 0 if not given")
  parser.add_argument("--workdir", required=True, metavar="DIR", help="where everything goes")
  parser.add_argument("--only", metavar="NAME,NAME", help="run these variants; the table shows all")
  parser.add_argument("--table", action="store_true", help="run nothing, make table and figure from what is there")
  flags, overrides = commands.parse(parser, argv)

  def action() -> None:
    variants = load_variants(flags.variants)
    only = None if flags.only is None else _only(flags.only, variants)
    ladder(flags.config, variants, _seeds(flags.seeds), flags.workdir, overrides, () if flags.table else only)

  return commands.exit_status(action, flags)


if __name__ == "__main__":
  sys.exit(main())
