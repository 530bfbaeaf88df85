"""Every test runs on four CPU devices, so that what is wrong over devices fails here."""

import math
import os
import tempfile

# Compilation is most of the time here: let XLA try less hard.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=1"

import jax
import ml_collections
import pytest

from jax_uda import experiment
from jax_uda.config import known_configs, load_config

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
# Many tests trace the same step anew; only the first of them is to compile it.
jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp(prefix="jax_uda_tests_"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

# Files whose tests take longest: begun last, one of them would leave the other worker idle.
LONGEST = ("test_run", "test_methods", "test_evaluate", "test_training", "test_cross_validate", "test_ladder")


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


TINY = {
  "batch": 4,
  "num_stages": 3,
  "backbone": "resnet18",
  "head_channels": 8,
  "head_dilation": 1,
  "width": 0.125,
  "steps": 3,
  "statistics_steps": 2,
  "num": 1,
  "epochs": 2,
  "epoch_steps": 2,
  "patches": 3,
  "crop": (24, 48),
  "size": (24, 48),
  "canvas": (32, 64),
  "dtype": "float32",
  "weights": "",
  "pictures": 2,
  "eval_batch": 1,
  "log_every": 1,
  "checkpoint_every": 2,
  "probability": 0.0,  # mining: tests of it turn it on
}


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Any config on a few small street-world images, with a network of a few thousand parameters."""

  def walk(part):
    for name, value in part.items():
      if name in ("source", "target", "test"):
        continue
      if isinstance(value, ml_collections.ConfigDict):
        walk(value)
      elif name in TINY:
        part[name] = TINY[name]

  walk(config)
  for role, domain, num in (("source", "game", 6), ("target", "photo", 5), ("test", "photo", 3)):
    config[role].update(
      {"kind": "street_world", "domain": domain, "split": "test" if role == "test" else "train", "num": num}
    )
    config[role].update({"height": 32, "width": 64, "dir": "", "list": ""})
  return config


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_functions():
  """Else a worker's memory grows by gigabytes; what is compiled again comes from the cache on the disk."""
  yield
  jax.clear_caches()


@pytest.fixture(params=experiment.method_names())
def tiny_config(request) -> ml_collections.ConfigDict:
  """For every method that there is, one of its configs, made tiny."""
  return tiny(request.param)


def tiny(method: str) -> ml_collections.ConfigDict:
  """A method's config of the smallest images, made tiny."""
  configs = [config for config in map(load_config, known_configs()) if config.method == method]
  assert configs, f"configs/ holds no config of the method {method}"
  return shrink(min(configs, key=lambda config: math.prod(config.canvas)))


@pytest.fixture(scope="session")
def mlsl_config() -> ml_collections.ConfigDict:
  """MLSL, tiny; not to be changed."""
  return tiny("mlsl")
