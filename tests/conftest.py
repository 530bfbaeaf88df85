"""Every test runs on four CPU devices, so that what is wrong over devices fails here."""

import os
import shutil
import tempfile

# Compilation is most of the time here: let XLA try less hard, and leave out the emitters that take it longest.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)

import jax
import ml_collections
import pytest

from jax_uda import experiment, export, run
from tests.tiny import tiny

# Many tests trace the same step anew; only the first of them, in whatever process, is to compile it.
FIRST_PROCESS = "JAX_UDA_TESTS_CACHE" not in os.environ
if FIRST_PROCESS:
  os.environ["JAX_UDA_TESTS_CACHE"] = tempfile.mkdtemp(prefix="jax_uda_tests_")
CACHE = os.environ["JAX_UDA_TESTS_CACHE"]
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE  # of processes that tests start

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# Files whose tests take longest: begun last, one of them would leave the other worker idle.
LONGEST = (
  "test_processes", "test_run", "test_methods", "test_evaluate", "test_training", "test_cross_validate", "test_ladder"
)  # fmt: skip


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_unconfigure():
  if FIRST_PROCESS:
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_functions():
  """Else a worker's memory grows by gigabytes; what is compiled again comes from the cache on the disk."""
  yield
  jax.clear_caches()


# The one with the largest network comes last: what methods share is then tested on a smaller one.
@pytest.fixture(params=experiment.method_names()[::-1])
def tiny_config(request) -> ml_collections.ConfigDict:
  """For every method that there is, one of its configs, made tiny."""
  return tiny(request.param)


@pytest.fixture(scope="session")
def mlsl_config() -> ml_collections.ConfigDict:
  """MLSL, tiny; not to be changed."""
  return tiny("mlsl")


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
  """Of a run of one step, whose network has two decoders."""
  config = tiny("curriculum")
  config.mode, config.test.kind = "source_only", ""
  config.source_training.update({"steps": 1, "epochs": 0})
  config.curriculum.update({"epochs": 0, "statistics_steps": 0})
  workdir = tmp_path_factory.mktemp("run")
  run.run(config, workdir)
  return workdir


@pytest.fixture(scope="session")
def exported(workdir, tmp_path_factory):
  """Its network as a file for images of any size."""
  path = tmp_path_factory.mktemp("exported") / "model.stablehlo"
  export.export(workdir, path)
  return path
