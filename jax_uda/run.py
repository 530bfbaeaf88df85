"""The story of a run: stages in order, each one labelled, trained, scored and written down; resumed where it stopped."""

import time
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from jax_uda import evaluate, files, inference, labelling, parallel, pictures, report, terminal, trained, training
from jax_uda.checkpoint import Checkpoints, take_networks
from jax_uda.config import differences
from jax_uda.errors import UserError
from jax_uda.experiment import (
  Experiment,
  last_stage,
  look_at_labels,
  open_experiment,
  refuse_other_run,
  source_settings,
  tolerant,
)
from jax_uda.results import stage_result
from jax_uda.state import State
from jax_uda.stopping import StopSignal


def run(config: ConfigDict, workdir: epath.PathLike) -> dict[str, Any]:
  """Runs what is left of a config's stages in a working directory.

  Args:
    config: see `configs/default.py`.
    workdir: where everything goes. An unfinished run of the same config in it goes on where it stopped.

  Returns:
    What results.json holds.

  Raises:
    UserError: config, data or working directory are not right, or a loss is not finite.
    Interrupted: SIGTERM came.
  """
  workdir = epath.Path(workdir)
  experiment = open_experiment(config)
  refuse_other_run(config, workdir)
  results = parallel.gather(open_results(experiment, workdir))[0]  # all go by what process 0 sees there
  if results["final"]:
    print(f"{workdir}: this run is finished\n{said_of(results)}")
    write_report(workdir)
    return results
  experiment = tolerant(experiment, workdir)
  if not results["stages"]:
    look_at_labels(experiment)
  checkpoints = Checkpoints(workdir / "checkpoints", experiment.stages)
  state = first_state(experiment, fresh=parallel.gather(checkpoints.empty())[0])
  # What can be wrong with a config is found by now: from here on the directory is this run's.
  parallel.barrier()  # all have seen what was there before
  files.write_json(workdir / "config.json", config.to_dict())
  files.write_classes(workdir, experiment.space)
  last = last_stage(experiment)
  with StopSignal() as stop:
    index, state, seconds = start_or_resume(experiment, workdir, checkpoints, state, stop)
    if index > len(results["stages"]):
      stage = experiment.stages[index].name
      raise UserError(f"{workdir}/results.json lacks what came before {stage}; put it back, or name a new --workdir")
    while index <= last:
      state, seconds = training.train(experiment, workdir, index, state, checkpoints, seconds, stop)
      if index == len(results["stages"]):
        results["stages"].append(score(experiment, workdir, index, state, seconds, stop))
        write_results(workdir, results, finished=index + 1 == len(experiment.stages))
        print(said_of(results), flush=True)
      index += 1
      if index <= last:
        state, seconds = begin(experiment, workdir, index, state, stop)
        checkpoints.save(index, state, seconds)
  if last + 1 < len(experiment.stages):
    print(f"{workdir}: ends after {config.stop_after}, as config.stop_after says; the same command without it goes on")
  write_report(workdir)
  return results


def open_results(experiment: Experiment, workdir: epath.Path) -> dict[str, Any]:
  """results.json as an earlier process left it, or a new one."""
  path = workdir / "results.json"
  if path.exists():
    return files.read_json(path)
  return {
    "config": experiment.config.to_dict(),
    "method": experiment.config.method,
    "protocol": experiment.protocols[0].name,
    "seconds": 0.0,
    "stages": [],
    "final": None,
  }


def write_results(workdir: epath.Path, results: dict[str, Any], finished: bool) -> None:
  """Writes results.json; `final` is the last state, whatever was best."""
  results["seconds"] = sum(stage["seconds"] for stage in results["stages"])
  results["final"] = results["stages"][-1] if finished else None
  files.write_json(workdir / "results.json", results)


def said_of(results: dict[str, Any]) -> str:
  """The scores so far, for the terminal."""
  if any(stage["miou"] is not None for stage in results["stages"]):
    return f"\n{terminal.iou_table(results['stages'])}\n"
  return f"{results['stages'][-1]['name']}: nothing to score, as config.test names no labelled images"


def write_report(workdir: epath.Path) -> None:
  """Writes the report, of what all processes have written."""
  parallel.barrier()
  if parallel.is_first():
    print(f"report: {report.write_report(workdir)}")
  parallel.barrier()


def first_state(experiment: Experiment, fresh: bool) -> State:
  """The state before the first stage; or, in a fresh run that wants it, after another run's first stage.

  Raises:
    UserError: the weights do not fit; `config.start_from` holds no finished first stage of equal settings.
  """
  config = experiment.config
  state = experiment.method.init(config, jax.random.key(config.seed))
  if not (config.start_from and fresh):
    return state
  if experiment.stages[0].name != "source":
    raise UserError("config.start_from: this config has no stage `source`; set config.weights, or config.source_training")
  other = epath.Path(config.start_from)
  if not (other / "config.json").exists():
    raise UserError(f"config.start_from: {other} holds no run; name another run's --workdir")
  theirs = source_settings(files.read_json(other / "config.json"))
  if changes := differences(theirs, source_settings(files.plain(config.to_dict()))):
    raise UserError(f"config.start_from: {other} had other source settings ({'; '.join(changes)}); make them equal")
  try:
    return take_networks(other / "checkpoints", experiment.stages[0].num_steps, state)
  except UserError as error:
    raise UserError(f"config.start_from: {error}") from error


def start_or_resume(
  experiment: Experiment, workdir: epath.Path, checkpoints: Checkpoints, state: State, stop: StopSignal
) -> tuple[int, State, float]:
  """The stage to go on with, the state in it and the seconds already spent in it."""
  log, first = files.MetricsLog(workdir / "metrics.jsonl"), experiment.stages[0]
  state = state.replace(hyper={**state.hyper, **labelling.label_statistics(experiment, workdir, stop)})
  state = first.begin(state, experiment.stage_key(0, 0))
  if (found := checkpoints.restore(state)) is not None:
    index, state, seconds = found
    log.truncate(index, int(state.step))
    print(f"resuming at stage {experiment.stages[index].name}, step {int(state.step)}", flush=True)
    return index, state, seconds
  log.truncate(0, -1)
  if experiment.config.start_from:
    state = state.replace(step=jnp.int32(first.num_steps))
  checkpoints.save(0, state, 0.0)
  return 0, state, 0.0


def begin(
  experiment: Experiment, workdir: epath.Path, index: int, state: State, stop: StopSignal
) -> tuple[State, float]:
  """Step 0 of a later stage, with the target labelled where the stage wants it; and the seconds that took."""
  started, stage = time.monotonic(), experiment.stages[index]
  if stage.labelling is not None:
    found = labelling.label_target(experiment, workdir, index, state, stop)
    state = state.replace(hyper={**state.hyper, **found})
  return stage.begin(state, experiment.stage_key(index, 0)), time.monotonic() - started


def score(
  experiment: Experiment, workdir: epath.Path, index: int, state: State, seconds: float, stop: StopSignal
) -> dict[str, Any]:
  """A stage's entry in results.json; its pictures are drawn, and its confusion matrix is kept, on the way."""
  started, stage, config = time.monotonic(), experiment.stages[index], experiment.config
  state = parallel.replicate(state)
  confusion = None
  if "test" in experiment.datasets:
    scales = inference.parse_scales(config.eval_scales, "config.eval_scales")
    manner, network = trained.Manner(scales, config.eval_flip), trained.of(experiment, state)
    confusion = evaluate.score(network, experiment.datasets["test"], f"{stage.name} · scoring", stop, manner)
  if confusion is not None:
    evaluate.write_confusion(workdir, stage.name, confusion, experiment.space)
  pictures.draw(experiment, workdir, stage, state)
  result = stage_result(
    stage.name,
    stage.num_steps,
    seconds + time.monotonic() - started,
    confusion,
    experiment.space.classes,
    labelling.pseudo_label_counts(workdir, stage.name) if stage.labelling else None,
    evaluate.by_protocol(confusion, experiment.space, experiment.protocols, config.absent_as_zero),
  )
  about = {"waiting_for_data": training.waiting_for_data(workdir, index), "device": device()}
  return {**result, **about}


def device() -> str:
  """What a run trains on: how many devices of which name."""
  num = jax.device_count()
  return f"{num} × {parallel.device_name()}" if num > 1 else parallel.device_name()
