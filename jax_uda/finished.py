"""Runs that have finished a stage at least: their config, and their networks as a stage left them."""

from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
from etils import epath

from jax_uda import checkpoint, files, parallel
from jax_uda.config import default_fields, set_fields, stored_config
from jax_uda.data.label_spaces import LabelSpace
from jax_uda.errors import UserError
from jax_uda.experiment import Experiment
from jax_uda.state import State


def check_settable(overrides: Sequence[str], settable: Sequence[str]) -> None:
  """Raises `UserError` for a `field=value` that is not `settable`: names of fields, or `part.` for all of a part."""
  for field in (override.partition("=")[0] for override in overrides):
    if not any(field == one or (one.endswith(".") and field.startswith(one)) for one in settable):
      known = ", ".join(f"{one}FIELD" if one.endswith(".") else one for one in settable)
      raise UserError(f"--config.{field} cannot be set here; {f'what can be is {known}' if known else 'leave it out'}")


def read_config(
  workdir: epath.Path, overrides: Sequence[str] = (), settable: Sequence[str] = ()
) -> tuple[ml_collections.ConfigDict, LabelSpace]:
  """The config of a run, with fields that it lacks as they are by default, and what its network predicts.

  Args:
    workdir: the run's.
    overrides: `field=value`, each.
    settable: see `check_settable`.

  Raises:
    UserError: there is no run with a finished stage, or no such field, or it is not settable.
  """
  check_settable(overrides, settable)
  for file in ("config.json", "results.json"):
    if not (workdir / file).exists():
      raise UserError(f"--workdir: {workdir} holds no run with a finished stage ({file} is missing); name a run's folder")
  content = files.read_json(workdir / "config.json")
  config = stored_config(content, default_fields(content["method"]))
  set_fields(config, overrides)
  return config, files.read_classes(workdir)


def find_stage(workdir: epath.Path, name: str = "") -> tuple[str, int]:
  """A stage whose end was kept, by its name or the last one; and the number of the checkpoint.

  Raises:
    UserError: there is none, or none of that name.
  """
  stages = files.read_json(workdir / "results.json")["stages"]
  kept = checkpoint.kept_ends(workdir / "checkpoints", [stage["steps"] for stage in stages])
  places = {stages[i]["name"]: place for i, place in kept.items()}
  if not places:
    raise UserError(f"--workdir: {workdir}/checkpoints holds no finished stage; let the run finish one")
  name = name or stages[-1]["name"]
  if name not in places:
    raise UserError(f"--stage: {workdir} has no checkpoint of the end of {name!r}; it has those of: {', '.join(places)}")
  return name, places[name]


def restore(workdir: epath.Path, experiment: Experiment, place: int) -> State:
  """The networks of a checkpoint that `find_stage` has found, on all devices; to predict with, so nothing else is there."""
  shapes = jax.eval_shape(lambda: experiment.method.init(experiment.config, jax.random.key(0)))
  networks = checkpoint.take_networks(workdir / "checkpoints", place, shapes).networks
  trained = {name: network.replace(opt_state=None) for name, network in networks.items()}
  return parallel.replicate(State(np.int32(0), trained, hyper={}))
