"""Several processes: the same run as in one, and no process that waits for ever for another one that is gone."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from jax_uda import main
from tests.conftest import CACHE
from tests.test_run import records, without_times

ROOT = Path(__file__).parent.parent
LOST = "error: another process is gone"
SECONDS = 120  # for what takes a few, or half a minute where it compiles


def start(command: list, workdir: Path, devices: int, *flags: str) -> subprocess.Popen:
  """A process of its own, on so many CPU devices."""
  environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}  # which JAX sets
  environment |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
    "JAX_COMPILATION_CACHE_DIR": CACHE,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PYTHONPATH": str(ROOT),
  }
  command = [sys.executable, *command, f"--workdir={workdir}", *flags]
  return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextlib.contextmanager
def two(command: list, workdir: Path, devices: int) -> Iterator[list[subprocess.Popen]]:
  """Two such processes that belong together; none outlives the test."""
  with socket.socket() as free:
    free.bind(("", 0))
    port = free.getsockname()[1]
  flags = [f"--coordinator=localhost:{port}", "--num_processes=2", "--heartbeat=10"]
  both = [start(command, workdir, devices, *flags, f"--process_id={i}") for i in range(2)]
  try:
    yield both
  finally:
    for process in both:
      process.kill()
      process.communicate()


def wait_for(condition: Callable[[], bool], *processes: subprocess.Popen) -> None:
  """Until it holds, which it has to while all the processes run."""
  end = time.monotonic() + SECONDS
  while not condition():
    assert time.monotonic() < end
    assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
    time.sleep(0.02)


def ended(process: subprocess.Popen, status: int) -> str:
  """What a process, which ends soon with this exit status, said on stderr beside its progress."""
  _, said = process.communicate(timeout=SECONDS)
  assert process.returncode == status, said
  return "\n".join(line for line in said.splitlines() if " · " not in line)


def logged(workdir: Path, stage: str) -> list[dict]:
  """The lines of metrics.jsonl of a stage."""
  return [record for record in records(workdir) if record["stage"] == stage] if (workdir / "metrics.jsonl").exists() else []


def same_losses(mine: list[dict], other: list[dict]) -> None:
  """The same to float32 rounding of sums in another order, which a few steps amplify."""
  assert [record["step"] for record in mine] == [record["step"] for record in other]
  for this, that in zip(mine, other, strict=True):
    for name in ("loss", "gradient_norm"):
      np.testing.assert_allclose(this[name], that[name], rtol=1e-4, err_msg=name)


RUN = ["-m", "jax_uda.main", "--config=tests/tiny_synced.py"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
  """The run in one process on one device."""
  workdir = tmp_path_factory.mktemp("alone")
  ended(start(RUN, workdir, 1), 0)
  return workdir


def test_sigterm_to_one_of_two_stops_both_where_they_have_saved(alone, tmp_path):
  with two(RUN, tmp_path, 2) as both:
    wait_for(lambda: logged(tmp_path, "source"), *both)
    both[1].send_signal(signal.SIGTERM)
    for process in both:
      assert ended(process, 75) == f"stopped; run the same command again to go on in {tmp_path}"
  lines = logged(tmp_path, "source")
  assert (tmp_path / "checkpoints" / str(lines[-1]["step"])).is_dir()
  same_losses(lines, logged(alone, "source")[: len(lines)])


def test_two_go_on_from_one_and_one_goes_on_from_two_of_which_one_was_killed(alone, tmp_path):
  # Back to the end of the stage `source`: from the same weights, so that labels are the same.
  shutil.copytree(alone, workdir := tmp_path / "run")
  shutil.rmtree(workdir / "pseudo_labels")
  for path in (workdir / "checkpoints").iterdir():
    if path.name.isdigit() and path.name != "3":
      shutil.rmtree(path)
  results = json.loads((workdir / "results.json").read_text())
  (workdir / "results.json").write_text(json.dumps({**results, "stages": results["stages"][:1], "final": None}))
  (workdir / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in logged(alone, "source")))

  with two(RUN, workdir, 2) as both:
    wait_for(lambda: logged(workdir, "round_1"), *both)
    both[1].kill()
    said = ended(both[0], 69)
  assert said.startswith(LOST) and "\n" not in said
  assert said.endswith(f"run the same command on all hosts again to go on in {workdir}")
  labels = sorted((alone / "pseudo_labels/round_1").glob("*.png"))
  assert len(labels) == 5
  for path in labels:
    assert path.read_bytes() == (workdir / "pseudo_labels/round_1" / path.name).read_bytes()
  mine, other = (json.loads((w / "pseudo_labels/round_1.json").read_text()) for w in (workdir, alone))
  assert without_times(mine) == without_times(other) and len(mine["chosen"]) == 3
  lines = logged(workdir, "round_1")
  same_losses(lines, logged(alone, "round_1")[: len(lines)])

  ended(start(RUN, workdir, 1), 0)
  same_losses(logged(workdir, "round_1"), logged(alone, "round_1"))
  mine, other = (json.loads((w / "results.json").read_text())["final"] for w in (workdir, alone))
  assert mine["miou"] == pytest.approx(other["miou"], abs=1e-3)
  assert mine["pseudo_labels"] == other["pseudo_labels"]


@pytest.mark.parametrize("dies", [0, 1])
def test_who_is_left_ends_with_one_line(tmp_path, dies):
  with two(["tests/waiting_process.py"], tmp_path, 2) as both:
    wait_for(lambda: all((tmp_path / str(i)).exists() for i in range(2)), *both)
    both[dies].kill()
    said = ended(both[1 - dies], 69)
  assert said.startswith(LOST) and "\n" not in said


def test_an_error_in_one_process_ends_the_other(tmp_path):
  (tmp_path / "mend_1").touch()
  with two(["tests/waiting_process.py"], tmp_path, 1) as both:
    assert ended(both[1], 2) == "error: a file is there; take it away"
    assert ended(both[0], 69).startswith(LOST)


def test_a_coordinator_that_is_not_there(tmp_path):
  with two(["tests/waiting_process.py"], tmp_path, 1) as both:
    both[0].kill()
    said = ended(both[1], 2)
  assert said.startswith("error: --coordinator localhost:") and "cannot be reached" in said and "\n" not in said


def test_a_port_that_is_taken(tmp_path):
  with socket.create_server(("", 0)) as taken:
    flags = [f"--coordinator=localhost:{taken.getsockname()[1]}", "--num_processes=2", "--process_id=0"]
    said = ended(start(["tests/waiting_process.py"], tmp_path, 1, *flags), 2)
  assert said.startswith("error: --coordinator localhost:") and "in use" in said and "\n" not in said


@pytest.mark.parametrize(("flags", "said"), [
  (("--num_processes=2",), "--num_processes: name --coordinator"),
  (("--process_id=0",), "--process_id: name --coordinator"),
  (("--coordinator=host:1",), "name --num_processes and --process_id, too"),
  (("--coordinator=host:1", "--num_processes=2"), "name --num_processes and --process_id, too"),
  (("--coordinator=host", "--num_processes=2", "--process_id=0"), "'host' will not do; write HOST:PORT"),
  (("--coordinator=host:70000", "--num_processes=2", "--process_id=0"), "'host:70000' will not do"),
  (("--coordinator=host:1", "--num_processes=2", "--process_id=2"), "2 of --num_processes 2 will not do; count from 0"),
  (("--coordinator=host:1", "--num_processes=0", "--process_id=0"), "--process_id: 0 of --num_processes 0"),
  (("--coordinator=host:1", "--num_processes=x", "--process_id=0"), "invalid int value: 'x'"),
  (("--coordinator=auto", "--num_processes=2"), "--num_processes: leave it out"),
  (("--coordinator=auto", "--heartbeat=0"), "--heartbeat: 0 will not do"),
])  # fmt: skip
def test_flags_that_do_not_go_together(capsys, tmp_path, flags, said):
  with pytest.raises(SystemExit) as end:
    main.main(["--config=configs/demo.py", f"--workdir={tmp_path}", *flags])
  shown = capsys.readouterr().err.strip()
  assert end.value.code == 2 and shown.startswith("error: ") and said in shown and "\n" not in shown


def test_no_cluster_to_be_found(tmp_path):
  said = ended(start(RUN, tmp_path, 1, "--coordinator=auto"), 2)
  assert said.startswith("error: --coordinator auto: ") and "name HOST:PORT" in said and "\n" not in said
