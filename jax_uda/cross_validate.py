"""Cross-validation: a config run once per fold, and the folds' confusion matrices pooled into one.

the three commonest commands:
  python -m jax_uda.cross_validate --config configs/cbst_nthu.py --workdir runs/rome --config.data_dir=DATA
  python -m jax_uda.cross_validate --config configs/cbst_nthu.py --folds 3 --workdir runs/rome --config.data_dir=DATA
  python -m jax_uda.cross_validate --config configs/cbst_nthu.py --workdir runs/rio --config.data_dir=DATA \\
    --config.target.domain=Rio --config.test.domain=Rio

`target.split` and `test.split` of the config end in a fold's number, as in train0 and test0; each fold, from 0, puts its
own there. It is a run in `DIR/fold_<k>`; the first one makes the source stage, which the others take over.
"""

import re
import sys
from collections.abc import Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from jax_uda import commands, evaluate, files, run, terminal
from jax_uda.config import load_config
from jax_uda.errors import UserError
from jax_uda.experiment import refuse_stop_after, scoring_protocols

PLACE = re.compile(r"\d+$")


def fold_config(config: ConfigDict, fold: int, workdir: epath.PathLike) -> ConfigDict:
  """A fold's config: its number in the splits, and after the first fold the first one's source stage to start from."""
  config = config.copy_and_resolve_references()
  for spec in (config.target, config.test):
    spec.split = PLACE.sub(str(fold), spec.split)
  if fold:
    config.start_from = str(fold_dir(workdir, 0).resolve())
  return config


def fold_dir(workdir: epath.PathLike, fold: int) -> epath.Path:
  """Where a fold's run lies."""
  return epath.Path(workdir) / f"fold_{fold}"


def cross_validate(config: ConfigDict, folds: int, workdir: epath.PathLike) -> dict[str, Any]:
  """Runs what is left of the folds, then scores them together: their first stage, and their last.

  Args:
    config: with splits that end in a number.
    folds: how many.
    workdir: where everything goes. Folds that are there are not run again, and an unfinished one goes on.

  Returns:
    What results.json in `workdir` holds: {"config", "method", "protocol", "folds", "seconds", "stages": [{"name", "miou",
    "pixel_accuracy", "iou", "other_protocols"}], "final"}.

  Raises:
    UserError: there is nothing to cross-validate, or a run cannot go on.
    Interrupted: SIGTERM came.
  """
  refuse_stop_after(config, "folds")
  if not all(PLACE.search(spec.split) for spec in (config.target, config.test)):
    raise UserError(
      f"--config: target.split is {config.target.split!r}, test.split {config.test.split!r}; let both end in a number, "
      "the fold's"
    )
  runs = []
  for fold in range(folds):
    print(f"fold {fold}, {fold + 1} of {folds}", flush=True)
    runs.append(run.run(fold_config(config, fold, workdir), fold_dir(workdir, fold)))
  first = fold_dir(workdir, 0)
  space = files.read_classes(first)
  protocols = scoring_protocols(config, space)
  stages = []
  for name in dict.fromkeys((runs[0]["stages"][0]["name"], runs[0]["stages"][-1]["name"])):
    pooled = sum(evaluate.read_confusion(fold_dir(workdir, fold), name) for fold in range(folds))
    (_, main), *others = evaluate.by_protocol(pooled, space, protocols, config.absent_as_zero).items()
    stages.append({"name": name, **main, "other_protocols": dict(others)})
  results = {
    "config": config.to_dict(),
    "method": config.method,
    "protocol": protocols[0].name,
    "folds": folds,
    "seconds": sum(one["seconds"] for one in runs),
    "stages": stages,
    "final": stages[-1],
  }
  files.write_json(epath.Path(workdir) / "results.json", results)
  evaluate.write_table(epath.Path(workdir) / "results.csv", {stage["name"]: stage["iou"] for stage in stages})
  print(f"\n{protocols[0].name}, {folds} folds together\n\n{terminal.iou_table(stages)}\n", flush=True)
  return results


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the folds, prints the table, and returns the exit status."""
  parser = commands.parser("cross_validate", __doc__)
  parser.add_argument("--config", required=True, metavar="FILE.py", help="the experiment")
  parser.add_argument("--folds", type=int, default=10, metavar="K", help="how many; 10 if not given")
  parser.add_argument("--workdir", required=True, metavar="DIR", help="where everything goes")
  flags, overrides = commands.parse(parser, argv)
  if flags.folds < 1:
    parser.error(f"--folds: {flags.folds} will not do; it has to be at least 1")

  def action() -> None:
    cross_validate(load_config(flags.config, overrides), flags.folds, flags.workdir)

  return commands.exit_status(action, flags)


if __name__ == "__main__":
  sys.exit(main())
