"""What the commands share."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jax_uda import commands

MODULES = [
  *(f"jax_uda.{name}" for name in (
    "main", "ladder", "cross_validate", "evaluate", "predict", "export", "report", "runs", "tensorboard",
    "benchmark.__main__", "benchmark.selection",
  )),
  *(f"data_prep.{name}" for name in ("gta5", "synthia", "cityscapes", "bdd100k", "nthu", "ade20k", "camvid")),
]  # fmt: skip
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


def test_these_are_all_commands():
  root = Path(commands.__file__).parents[1]
  files = [path for part in ("jax_uda", "data_prep") for path in (root / part).rglob("*.py")]
  races = ("torch_side",)  # started by a race alone
  found = [path for path in files if "\nif __name__ ==" in path.read_text() and path.stem not in races]
  assert sorted(".".join(path.relative_to(root).with_suffix("").parts) for path in found) == sorted(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_help_begins_with_the_three_commonest_commands(module, capsys):
  with pytest.raises(SystemExit) as end:
    importlib.import_module(module).main(["--help"])
  assert end.value.code == 0
  said = capsys.readouterr().out
  examples = said.partition("the three commonest commands:\n")[2].partition("\n\n")[0].replace("\\\n", " ").splitlines()
  name = module.removesuffix(".__main__")
  assert len([line for line in examples if line.startswith("  ")]) == 3, said
  assert sum(line.startswith(f"  python -m {name}") for line in examples) >= 2
  flags = {word.partition("=")[0] for line in examples for word in line.split() if word.startswith("--")}
  known = set(re.findall(r"--\w+", said.rpartition("options:")[2]))
  assert {flag for flag in flags if not flag.startswith("--config.")} - {"--logdir"} <= known
