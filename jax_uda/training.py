"""Training: the steps of one stage."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from jax_uda import files, labelling, parallel, terminal
from jax_uda.checkpoint import Checkpoints
from jax_uda.data import pipeline, sources
from jax_uda.errors import UserError
from jax_uda.experiment import Experiment
from jax_uda.state import Stage, State
from jax_uda.stopping import Interrupted, StopSignal


def train(
  experiment: Experiment,
  workdir: epath.Path,
  index: int,
  state: State,
  checkpoints: Checkpoints,
  seconds: float,
  stop: StopSignal,
) -> tuple[State, float]:
  """The steps of a stage that are left to do.

  Args:
    state: at any step of the stage; a checkpoint of it exists.
    seconds: spent in the stage before.

  Returns:
    The state at the stage's end, saved; the seconds spent in the stage.

  Raises:
    UserError: a loss is not finite.
    Interrupted: SIGTERM came; the state is saved.
  """
  config, stage = experiment.config, experiment.stages[index]
  log = files.MetricsLog(workdir / "metrics.jsonl")
  started, start = time.monotonic(), int(state.step)
  if start == stage.num_steps:
    return state, seconds
  streams = _open_streams(experiment, workdir, index, start)
  key = experiment.stage_key(index, 2)
  state = parallel.replicate(state)
  window = _Window(stage, index)
  records = log.read()
  warned = {line for record in records for line in record.get("warnings", ())}
  with terminal.Progress(f"{stage.name} · training", stage.num_steps, "steps", initial=start) as bar:
    for step in range(start + 1, stage.num_steps + 1):
      kind = stage.steps[stage.pick(step - 1)]
      with window.waiting():
        batches = {name: next(streams[name]) for name in kind.streams}
      state, metrics = parallel.train_step(kind.apply)(state, batches, key)
      window.add(step, metrics, sum(stage.streams[name].batch for name in kind.streams))
      logs = step % config.log_every == 0
      stopping = stop.requested(agree=logs)  # asked once a step: what is not saved for it must not end on it
      save = step == stage.num_steps or step % config.checkpoint_every == 0 or stopping
      values = {}
      if save or logs:
        values = window.close(checkpoints.latest())
        records.append(values)
        if new := [line for line in stage.warnings(records) if line not in warned]:
          values["warnings"] = new
          warned.update(new)
          print("\n".join(f"{stage.name}, step {step}: warning: {line}" for line in new), flush=True)
        log.append(values)
      if save:
        checkpoints.save(index, state, seconds + time.monotonic() - started)
      bar.update(1, **{name: values[name] for name in ("loss", "images_per_second") if name in values})
      if stopping:
        raise Interrupted
  return state, seconds + time.monotonic() - started


def waiting_for_data(workdir: epath.Path, index: int) -> float | None:
  """The share of a stage's training time that went by waiting for data, over all its log lines; None if it has none."""
  records = files.MetricsLog(workdir / "metrics.jsonl").read()
  windows = [(line["seconds"], line["waiting_for_data"]) for line in records if line["stage_index"] == index]
  return sum(seconds * share for seconds, share in windows) / sum(seconds for seconds, _ in windows) if windows else None


def _open_streams(
  experiment: Experiment, workdir: epath.Path, index: int, start: int
) -> dict[str, Iterator[dict[str, np.ndarray]]]:
  """This process's part of the stage's streams, each where it stands after `start` steps."""
  config, stage = experiment.config, experiment.stages[index]
  datasets = {**experiment.datasets, "target_images": experiment.datasets["target"]}
  if stage.labelling is not None:
    chosen = sources.Chosen(datasets["target"], labelling.chosen(workdir, stage.name))
    datasets["target"] = sources.Relabelled(chosen, workdir / "pseudo_labels" / stage.name)
  drawn = Counter(name for step in range(start) for name in stage.steps[stage.pick(step)].streams)
  process = parallel.process()
  return {
    name: pipeline.train_stream(
      [datasets[dataset] for dataset in stream.datasets],
      stream.batch // process["process_count"],
      tuple(config.canvas),
      seed=int(jax.random.bits(jax.random.fold_in(experiment.stage_key(index, 3), place)) >> 1),
      start=drawn[name],
      subset=stream.subset,
      threads=config.threads,
      **process,
    )
    for place, (name, stream) in enumerate(sorted(stage.streams.items()))
  }


class _Window:
  """Metrics since the last log line: kept on the device, fetched at `close`, so that steps are not held up."""

  def __init__(self, stage: Stage, index: int):
    self._stage, self._index = stage.name, index
    self._reset()

  def _reset(self) -> None:
    self._steps: list[tuple[int, dict]] = []
    self._images, self._waited, self._opened = 0, 0.0, time.monotonic()

  def waiting(self) -> "_Window":
    return self

  def __enter__(self) -> None:
    self._wait_began = time.monotonic()

  def __exit__(self, *_) -> None:
    self._waited += time.monotonic() - self._wait_began

  def add(self, step: int, metrics: dict, images: int) -> None:
    self._steps.append((step, metrics))
    self._images += images

  def close(self, checkpoint: str) -> dict[str, Any]:
    """The window's log line; a loss that is not finite ends the run."""
    steps = jax.device_get(self._steps)
    totals: dict[str, np.ndarray] = {}
    for step, metrics in steps:
      for name, pair in metrics.items():
        pair = np.asarray(pair, np.float64)
        if not np.isfinite(pair).all():
          losses = {key: (x, n) for key, (x, n) in metrics.items() if np.ndim(x) == 0}
          loss = " and ".join(f"{key} is {float(x) / max(float(n), 1):.4g}" for key, (x, n) in losses.items())
          raise UserError(
            f"stage {self._stage}, step {step}: {loss}; the last good checkpoint is {checkpoint}; lower the stage's "
            "learning rate or set another seed, and name a new --workdir"
          )
        totals[name] = totals.get(name, 0) + pair
    seconds = max(time.monotonic() - self._opened, 1e-9)
    record = {
      "stage": self._stage,
      "stage_index": self._index,
      "step": steps[-1][0],
      **{name: (total / count).tolist() for name, (total, count) in totals.items() if np.all(count)},
      "seconds": seconds,
      "images_per_second": self._images / seconds,
      "waiting_for_data": self._waited / seconds,
    }
    self._reset()
    return record
