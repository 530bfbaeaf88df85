"""What the commands share."""

import os
import subprocess
import sys
from pathlib import Path

import jax

from jax_uda import commands

SCRIPT = """
from jax_uda import commands
commands.keep_compilations()
import jax
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name.rpartition("/")[2]))
jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((8, 8)))
print(found.count("cache_hits"), found.count("cache_misses"))
"""


def compiled(home: Path) -> tuple[int, int]:
  """How many programs came from the disk, and how many did not, in a process of its own."""
  environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
  environment |= {"XDG_CACHE_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
  hits, misses = map(int, done.stdout.split())
  return hits, misses


def test_a_second_process_compiles_nothing_again(tmp_path):
  hits, misses = compiled(tmp_path)
  assert hits == 0 and misses > 0 and list((tmp_path / "jax_uda").iterdir())
  assert compiled(tmp_path) == (misses, 0)


def test_a_place_that_cannot_be_written_keeps_nothing_and_stops_nothing(tmp_path):
  (tmp_path / "file").write_text("")
  hits, _ = compiled(tmp_path / "file")
  assert hits == 0


def test_a_place_that_is_set_stays():
  before = jax.config.jax_compilation_cache_dir
  commands.keep_compilations()
  assert before and jax.config.jax_compilation_cache_dir == before
