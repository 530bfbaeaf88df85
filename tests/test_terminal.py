"""What a run says in the terminal."""

import fcntl
import io
import os
import pty
import re
import struct
import termios
import time

import jax.numpy as jnp
import numpy as np
import pytest

from jax_uda import terminal
from jax_uda.data.label_spaces import CITYSCAPES19
from jax_uda.results import stage_result

CLASSES = ("road", "sky & <air>", "car")
CONFUSION = np.array([[6, 2, 0], [0, 4, 0], [0, 0, 0]])  # no car, neither true nor predicted


def test_iou_table():
  stages = [stage_result(name, 1, 1.0, CONFUSION, CLASSES) for name in ("source", "round_1")]
  assert terminal.iou_table(stages).splitlines() == [
    "IoU in %        source  round_1",
    "───────────────────────────────",
    "road              75.0     75.0",
    "sky & <air>       66.7     66.7",
    "car                  –        –",
    "───────────────────────────────",
    "mIoU              70.8     70.8",
    "pixel accuracy    83.3     83.3",
  ]


def test_iou_table_fits_the_terminal():
  classes = ("a class whose name goes on and on and on", *CITYSCAPES19.classes)
  names = ["source", *(f"round_{i}" for i in range(1, 20)), "a stage whose name goes on and on"]
  stages = [stage_result(name, 1, 1.0, np.eye(20, dtype=int), classes) for name in names]
  lines = terminal.iou_table(stages).splitlines()
  assert max(map(len, lines)) <= 100 and len(lines) == 20 + 5
  head = lines[0].split()
  assert head[3:5] == ["source", "…"] and "round_19" in head and "round_1" not in head
  assert len(terminal.iou_table([]).splitlines()) == 5


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands still until it is set."""
  now = [100.0]
  monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
  return now


def test_progress_without_a_terminal_prints_lines_now_and_then(capsys, clock):
  with terminal.Progress("round_1 · training", 100, unit="images") as bar:
    for _ in range(50):
      clock[0] += 1
      bar.update(2, loss=jnp.float32(0.25))
  out, err = capsys.readouterr()
  lines = err.splitlines()
  assert out == "" and len(lines) == 5 + 1
  assert lines[0] == "round_1 · training: 20/100 images (20%) · 2.0 images/s · 00:40 left · loss 0.25"
  assert lines[-1] == "round_1 · training: 100/100 images (100%) · 2.0 images/s · took 00:50 · loss 0.25"


def test_progress_leaves_earlier_work_out_of_the_rate(capsys, clock):
  with terminal.Progress("training", 1000, initial=900, every=5) as bar:
    clock[0] += 45
    bar.update(1)
    clock[0] += 5
    bar.update(49)
  first, second, last = capsys.readouterr().err.splitlines()
  assert first == "training: 901/1000 steps (90%) · the first took 00:45, compilation included"
  assert second == "training: 950/1000 steps (95%) · 9.8 steps/s · 00:05 left"
  assert last == "training: 950/1000 steps (95%) · 1.0 steps/s · took 00:50"


def test_progress_touches_values_only_when_it_shows_them(capsys, clock):
  class Untouchable:
    def __float__(self):
      raise AssertionError("this would wait for the device")

  with terminal.Progress("training", 2) as bar:
    bar.update(1, loss=Untouchable())
    bar.update(1, loss=0.5)
  assert "loss 0.5" in capsys.readouterr().err


def test_progress_says_how_far_it_came_when_it_fails(capsys):
  with pytest.raises(KeyError), terminal.Progress("training", 10) as bar:
    bar.update(3)
    raise KeyError
  assert "3/10 steps (30%)" in capsys.readouterr().err
  with terminal.Progress("nothing to do", 0):
    pass
  assert "0/0" in capsys.readouterr().err


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  tty = Terminal()
  monkeypatch.setattr("sys.stderr", tty)
  with terminal.Progress("round_1 · training", 100, unit="images", initial=40) as bar:
    for _ in range(3):
      time.sleep(0.1)
      bar.update(20, loss=0.125)
  text = tty.getvalue()
  assert "40/100" in text and "100/100" in text and "%|" in text
  assert "loss 0.125" in text and "images/s" in text
  assert "?" in text  # how long it takes is not known from the first, which compiles
  rate = float(re.findall(r"([\d.]+) images/s", text)[-1])
  assert 20 < rate < 350  # 200 for what was done here; with the 40 done earlier it would look faster


def test_a_terminal_of_no_size_has_lines(monkeypatch, capsys):
  main, other = pty.openpty()
  with open(other, "w") as tty:
    monkeypatch.setattr("sys.stderr", tty)
    assert not terminal._has_room()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    assert terminal._has_room()
  os.close(main)
