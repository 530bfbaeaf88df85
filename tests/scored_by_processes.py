"""Scores a tiny street world as one of several processes: `python scored_by_processes.py INDEX COUNT PORT`."""

import json
import sys

import jax

if __name__ == "__main__":
  index, count, port = map(int, sys.argv[1:])
  jax.config.update("jax_platforms", "cpu")
  if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, index)

  from jax_uda import evaluate, experiment, parallel, trained
  from jax_uda.stopping import StopSignal
  from tests.tiny import tiny

  config = tiny("self_training")
  config.test.num = 5  # does not divide over processes and devices
  opened = experiment.open_experiment(config)
  state = parallel.replicate(opened.method.init(opened.config, jax.random.key(0)))
  with StopSignal() as stop:
    found = evaluate.score(trained.of(opened, state), opened.datasets["test"], "scoring", stop)
  big = parallel.sum_over_processes(found * 2**40)  # beyond 32 bits
  print(json.dumps({"confusion": found.tolist(), "big": (big // 2**40).tolist()}))
