"""Devices and processes: the only file that knows pmap, and how processes share what they have found.

Train steps span the devices of all processes; what is done example by example, those of this one. Every function handed
in here is pure and defined once (at module level, or a partial made once in a run): it is wrapped, and compiled, once.
"""

import functools
import os
import pickle
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jax_uda.errors import UserError
from jax_uda.state import DEVICE_AXIS


@functools.cache
def train_step(step: Callable) -> Callable:
  """pmaps `step(state, batches, key) -> (state, metrics)`; batches are host arrays [this process's batch, …].

  The state carries no device axis and is donated.
  """
  mapped = _mapped(step)
  return lambda state, batches, key: mapped(state, shard(batches), key)


def lowered_train_step(step: Callable, state: Any, batches: Any, key: jax.Array) -> jax.stages.Lowered:
  """What `train_step` compiles; its executable takes batches that `shard` has been through."""
  return _mapped(step).lower(state, shard(batches), key)


@functools.cache
def _mapped(step: Callable) -> Callable:
  return jax.pmap(step, axis_name=DEVICE_AXIS, in_axes=(None, 0, None), out_axes=None, donate_argnums=0)


@functools.cache
def per_example(function: Callable) -> Callable:
  """pmaps `function(shared, batch) -> pytree [batch, …]`; takes and gives host arrays [batch, …] of this process."""
  mapped = _pmap_here(function)

  def call(shared: Any, batch: Any) -> Any:
    outputs = jax.device_get(mapped(shared, shard(batch)))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)

  return call


@functools.cache
def per_device(function: Callable) -> Callable:
  """pmaps `function(shared, batch) -> pytree`; gives a list of host pytrees, one a device of this process."""
  mapped = _pmap_here(function)

  def call(shared: Any, batch: Any) -> list[Any]:
    outputs = jax.device_get(mapped(shared, shard(batch)))
    return [jax.tree.map(lambda x, i=i: x[i], outputs) for i in range(num_devices())]

  return call


def _pmap_here(function: Callable) -> Callable:
  return jax.pmap(function, axis_name=DEVICE_AXIS, in_axes=(None, 0), devices=jax.local_devices())


def num_devices() -> int:
  """Devices of this process."""
  return jax.local_device_count()


def process() -> dict[str, int]:
  """Which process this is and of how many, in the names that the pipeline has for them.

  Raises:
    UserError: there are several, which cannot tell each other anything.
  """
  if jax.process_count() > 1 and not jax.distributed.is_initialized():
    raise UserError(f"JAX knows of {jax.process_count()} processes here; start all of them with --coordinator auto")
  return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def share(num: int) -> int:
  """How many of so many images are this process's."""
  return len(range(jax.process_index(), num, jax.process_count()))


def is_first() -> bool:
  """Whether this is the process that writes what all have found; asks no device where there is but one process."""
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def is_alone() -> bool:
  """Whether there is no other process."""
  return not jax.distributed.is_initialized() or jax.process_count() == 1


def gather(value: Any) -> list[Any]:
  """What each process gives, in their order: anything that can be pickled. Every process has to call it, and gets all.

  Whatever they wrote before is there when it returns.
  """
  if is_alone():
    return [value]
  # As bytes: arrays that pass a device have 32 bits. In sizes of powers of two, so that few compile.
  data = pickle.dumps(value)
  length = 1 << (int(multihost_utils.process_allgather(np.int32(len(data))).max()) - 1).bit_length()
  padded = np.frombuffer(data.ljust(length, b"\0"), np.uint8)
  return [pickle.loads(one.tobytes()) for one in multihost_utils.process_allgather(padded)]


def sum_over_processes(counts: np.ndarray) -> np.ndarray:
  """Whole numbers of the host, summed over the processes in their own 64 bits; every process has to call it."""
  return np.sum(gather(counts), axis=0)


def barrier() -> None:
  """Waits until every process is here."""
  gather(None)


def shard(batch: Any) -> Any:
  """[devices · n, …] -> [devices, n, …]."""
  return jax.tree.map(lambda x: x.reshape(num_devices(), -1, *x.shape[1:]), batch)


def replicate(state: Any) -> Any:
  """Puts a pytree onto every device, so that the first step compiles for the sharding that all later ones have."""
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (DEVICE_AXIS,))
  return jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def check_batch(batch: int, field: str) -> None:
  """Refuses a global batch that the devices of all processes cannot share.

  Raises:
    UserError: the batch does not divide over the devices.
  """
  if batch % jax.device_count():
    raise UserError(f"{field}: a batch of {batch} does not divide over {jax.device_count()} devices; choose a multiple")


def device_name() -> str:
  """The name of what JAX computes on: the accelerator's kind, or the processor with its cores."""
  about, kind = Path("/proc/cpuinfo"), jax.devices()[0].device_kind
  if kind != "cpu":
    return kind
  lines = about.read_text().splitlines() if about.exists() else []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return f"{(names or [platform.machine()])[0]}, {os.cpu_count()} cores"
