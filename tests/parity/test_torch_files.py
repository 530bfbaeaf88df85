"""PyTorch's own files: read to the bit, and nothing but tensors is taken out of them."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch

from jax_uda.errors import UserError
from jax_uda.models.segmenter import Segmenter
from jax_uda.models.weights import load
from tests.parity.test_torch_resnet import TorchResNet18, randomise


@pytest.fixture(scope="module")
def state():
  torch.manual_seed(0)
  return randomise(TorchResNet18(dilated=False)).state_dict()


@pytest.fixture(scope="module")
def variables():
  leaves = jax.eval_shape(Segmenter(5, "resnet18").init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  return jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), leaves)


def test_a_pth_file_is_the_safetensors_file(state, variables, tmp_path):
  safetensors.torch.save_file(state, tmp_path / "resnet18.safetensors")
  expected, _ = load(str(tmp_path / "resnet18.safetensors"), variables)
  scripts = {
    "plain": state,
    "checkpoint": {"epoch": torch.tensor(3), "state_dict": state},
    "parallel": {f"module.{name}": x for name, x in state.items()},
    "double": {name: x.double() if x.is_floating_point() else x for name, x in state.items()},
  }
  for name, content in scripts.items():
    torch.save(content, tmp_path / f"{name}.pth")
    found, report = load(str(tmp_path / f"{name}.pth"), variables)
    assert len(report.loaded) == 100 and not report.missing
    jax.tree.map(np.testing.assert_array_equal, found, expected)
  torch.save({name: x.bfloat16() for name, x in state.items()}, tmp_path / "half.pt")
  found, _ = load(str(tmp_path / "half.pt"), variables)
  kernel = state["conv1.weight"].bfloat16().float().numpy().transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(found["params"]["backbone"]["conv1"]["kernel"], kernel)


class Runs:
  """What makes a folder as soon as it is unpickled."""

  def __init__(self, folder):
    self.folder = folder

  def __reduce__(self):
    return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("old", [False, True])
def test_what_is_pickled_beside_tensors_is_refused_and_does_not_run(old, state, variables, tmp_path):
  torch.save(
    {**state, "optimizer": Runs(tmp_path / "ran")}, tmp_path / "bad.pth", _use_new_zipfile_serialization=not old
  )
  with pytest.raises(UserError, match="hold other things than tensors") as error:
    load(str(tmp_path / "bad.pth"), variables, partial=True)
  assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()


def test_damaged_files_and_other_things_are_errors_in_one_line(state, variables, tmp_path):
  torch.save(state, tmp_path / "whole.pth")
  whole = (tmp_path / "whole.pth").read_bytes()
  for content in (b"", b"\x00" * 99, whole[: len(whole) // 2], whole[:-9], b"PK\x03\x04" + bytes(64)):
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(UserError, match="damaged") as error:
      load(str(tmp_path / "bad.pth"), variables)
    assert "\n" not in str(error.value)
  around = {}
  around["model"] = around
  sparse = {"conv1.weight": torch.zeros(3, 3).to_sparse()}
  for content in ([1, 2], {"epoch": 3}, torch.zeros(3), {}, around, sparse, {1: "a"}):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"hold no (table of plain tensors|tensor)") as error:
      load(str(tmp_path / "other.pth"), variables)
    assert "\n" not in str(error.value)


def test_parameters_are_tensors_too(state, variables, tmp_path):
  torch.save({name: torch.nn.Parameter(x) if x.is_floating_point() else x for name, x in state.items()}, tmp_path / "a.pth")
  assert len(load(str(tmp_path / "a.pth"), variables)[1].loaded) == 100


def test_a_pytorch_that_does_not_guard_is_not_asked(state, variables, tmp_path, monkeypatch):
  torch.save(state, tmp_path / "a.pth")
  monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
  monkeypatch.setattr(torch, "load", None)
  with pytest.raises(UserError, match=r"2\.5\.1\+cpu, does not guard"):
    load(str(tmp_path / "a.pth"), variables)
