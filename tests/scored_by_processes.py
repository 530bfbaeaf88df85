"""Scores a tiny street world as one of several processes: `python scored_by_processes.py INDEX COUNT PORT`."""

import json
import sys

import jax
import numpy as np


def scored() -> dict:
  """The confusion matrix of all processes, and numbers beyond 32 bits that they have summed."""
  from jax_uda import evaluate, experiment, parallel, trained
  from jax_uda.stopping import StopSignal
  from tests.tiny import tiny

  config = tiny("self_training")
  config.test.num = 5  # does not divide over processes and devices
  opened = experiment.open_experiment(config)
  shapes, rng = jax.eval_shape(lambda: opened.method.init(opened.config, jax.random.key(0))), np.random.default_rng(0)
  # Initialisers would take long to compile.
  draw = {True: lambda shape: rng.normal(0, 0.3, shape), False: lambda shape: rng.uniform(0.1, 1, shape)}
  state = jax.tree.map(lambda x: draw[x.ndim > 1](x.shape).astype(x.dtype), shapes)
  state = parallel.replicate(state)
  with StopSignal() as stop:
    found = evaluate.score(trained.of(opened, state), opened.datasets["test"], "scoring", stop)
  big = parallel.sum_over_processes(found * 2**40)
  return {"confusion": found.tolist(), "big": (big // 2**40).tolist()}


if __name__ == "__main__":
  index, count, port = map(int, sys.argv[1:])
  jax.config.update("jax_platforms", "cpu")
  jax.distributed.initialize(f"localhost:{port}", count, index)
  print(json.dumps(scored()))
