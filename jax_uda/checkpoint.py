"""Checkpoints: the only file that imports Orbax.

A checkpoint's number is its place in the run, counting `num_steps + 1` places a stage, so that the end of a stage and the
start of the next (the state after labelling and `begin`) are told apart.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, CustomSteps, LatestN

from jax_uda import files
from jax_uda.errors import UserError
from jax_uda.state import Network, Stage, State


class Checkpoints:
  """The checkpoints of one run: written atomically, the last two kept, and the end of the first stage beside them."""

  def __init__(self, directory: epath.PathLike, stages: Sequence[Stage]):
    self.directory = epath.Path(directory)
    self._starts = _starts([stage.num_steps for stage in stages])
    self._manager = ocp.CheckpointManager(
      self.directory.absolute(),
      options=ocp.CheckpointManagerOptions(
        # The end of the first stage is what `start_from` of other runs takes over.
        preservation_policy=AnyPreservationPolicy([LatestN(2), CustomSteps([stages[0].num_steps])]),
        cleanup_tmp_directories=True,
        enable_async_checkpointing=False,
      ),
    )

  def empty(self) -> bool:
    """Whether nothing has been saved yet."""
    return self._manager.latest_step() is None

  def save(self, stage_index: int, state: State, seconds: float) -> None:
    """Writes the state at its step of the stage; a place that is already there is left alone."""
    place = int(self._starts[stage_index]) + int(state.step)
    if place in self._manager.all_steps():
      return
    self._manager.save(
      place,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(jax.device_get(state)),
        clock=ocp.args.JsonSave({"seconds": seconds}),
      ),
    )

  def restore(self, like: State) -> tuple[int, State, float] | None:
    """The latest checkpoint as (stage index, state, seconds spent in that stage), or None.

    Args:
      like: a state of the same structure.
    """
    place = self._manager.latest_step()
    if place is None:
      return None
    found = self._manager.restore(
      place,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(jax.tree.map(np.asarray, jax.device_get(like))),
        clock=ocp.args.JsonRestore(),
      ),
    )
    stage_index = int(np.searchsorted(self._starts, place, side="right")) - 1
    return stage_index, found["state"], found["clock"]["seconds"]

  def latest(self) -> str:
    """Where the last good checkpoint lies, in words."""
    place = self._manager.latest_step()
    return "none yet" if place is None else str(self.directory / str(place))


def kept_ends(directory: epath.PathLike, steps: Sequence[int]) -> dict[int, int]:
  """Of which stages a run has kept the end: {stage index: the checkpoint's number}, for stages of so many steps."""
  ends = _starts(steps)[:-1] + np.asarray(steps, int)
  return {i: int(place) for i, place in enumerate(ends) if (epath.Path(directory) / str(place)).is_dir()}


def take_networks(directory: epath.PathLike, place: int, state: State) -> State:
  """`state` with the weights of those of its networks that a checkpoint of another run holds.

  Raises:
    UserError: no such checkpoint, or none of the networks in it.
  """
  path = epath.Path(directory).absolute()
  if not (path / str(place)).is_dir():
    raise UserError(f"{path} holds no finished stage `source`; let that run finish it, or name another")
  found = _read(path, place)["networks"]
  shared = sorted(set(found) & set(state.networks))
  if not shared:
    raise UserError(f"{path} holds the networks {sorted(found)}, this run wants {sorted(state.networks)}")
  networks = dict(state.networks)
  for name in shared:
    networks[name] = _take(networks[name], found[name])
    theirs, ours = (jax.tree.map(np.shape, x.replace(opt_state=None)) for x in (networks[name], state.networks[name]))
    if theirs != ours:
      raise UserError(f"{path} holds a {name} of other layers; give it the same here, or train `source`")
  return state.replace(networks=networks)


def last_network(workdir: epath.PathLike, name: str) -> tuple[tuple[str, ...], dict[str, Any]]:
  """The classes of a finished run, and `params` and `batch_stats` of a network at its end.

  Raises:
    UserError: no such run, it has not finished, or it has no network of that name.
  """
  results = epath.Path(workdir) / "results.json"
  if not results.exists() or not files.read_json(results)["final"]:
    raise UserError(f"config.weights: {workdir} holds no finished run; let it finish, or name another")
  path = (epath.Path(workdir) / "checkpoints").absolute()
  networks = _read(path)["networks"]
  if name not in networks:
    raise UserError(f"config.weights: {workdir} holds the networks {sorted(networks)}, none of them {name}; name another")
  variables = {"params": networks[name]["params"], "batch_stats": networks[name]["batch_stats"] or {}}
  return files.read_classes(workdir).classes, variables


def _read(path: epath.Path, place: int | None = None) -> dict[str, Any]:
  """The state of a checkpoint, the last one unless its place is given, as plain dictionaries."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)  # Orbax warns that what is only read is only read
  try:
    with ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
      place = manager.latest_step() if place is None else place
      return manager.restore(place, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
  finally:
    logging.set_verbosity(verbosity)


def _starts(steps: Sequence[int]) -> np.ndarray:
  """The place where each stage begins, int [stages + 1]."""
  return np.cumsum([0] + [num_steps + 1 for num_steps in steps])


def _take(network: Network, found: dict[str, Any]) -> Network:
  """A network with the params and statistics of a restored one, and its own optimizer state."""
  return network.replace(
    params=jax.tree.map(lambda _, x: x, network.params, found["params"]),
    batch_stats=jax.tree.map(lambda _, x: x, network.batch_stats, found["batch_stats"] or {}),
  )
