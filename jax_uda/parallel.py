"""Devices: the only file that knows pmap.

Every function handed in here is pure and defined once (at module level, or a partial made once in a run): it is wrapped,
and compiled, once.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jax_uda.errors import UserError
from jax_uda.state import DEVICE_AXIS


@functools.cache
def train_step(step: Callable) -> Callable:
  """pmaps `step(state, batches, key) -> (state, metrics)`; batches are host arrays [global batch, …].

  The state carries no device axis and is donated.
  """
  mapped = jax.pmap(step, axis_name=DEVICE_AXIS, in_axes=(None, 0, None), out_axes=None, donate_argnums=0)
  return lambda state, batches, key: mapped(state, shard(batches), key)


@functools.cache
def per_example(function: Callable) -> Callable:
  """pmaps `function(shared, batch) -> pytree [batch, …]`; takes and gives host arrays [global batch, …]."""
  mapped = jax.pmap(function, axis_name=DEVICE_AXIS, in_axes=(None, 0))

  def call(shared: Any, batch: Any) -> Any:
    outputs = jax.device_get(mapped(shared, shard(batch)))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)

  return call


@functools.cache
def per_device(function: Callable) -> Callable:
  """pmaps `function(shared, batch) -> pytree`; gives a list of host pytrees, one a device."""
  mapped = jax.pmap(function, axis_name=DEVICE_AXIS, in_axes=(None, 0))

  def call(shared: Any, batch: Any) -> list[Any]:
    outputs = jax.device_get(mapped(shared, shard(batch)))
    return [jax.tree.map(lambda x, i=i: x[i], outputs) for i in range(num_devices())]

  return call


def num_devices() -> int:
  """Devices that share a batch."""
  return jax.local_device_count()


def process() -> dict[str, int]:
  """Which process this is and of how many, in the names that the pipeline has for them."""
  return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def sum_over_processes(counts: np.ndarray) -> np.ndarray:
  """Whole numbers of the host, summed over the processes in their own 64 bits; every process has to call it."""
  if jax.process_count() == 1:
    return counts
  # As bytes: arrays that pass a device have 32 bits.
  gathered = multihost_utils.process_allgather(np.frombuffer(counts.tobytes(), np.uint8))
  return np.sum([np.frombuffer(one.tobytes(), counts.dtype).reshape(counts.shape) for one in gathered], axis=0)


def shard(batch: Any) -> Any:
  """[devices · n, …] -> [devices, n, …]."""
  return jax.tree.map(lambda x: x.reshape(num_devices(), -1, *x.shape[1:]), batch)


def replicate(state: Any) -> Any:
  """Puts a pytree onto every device, so that the first step compiles for the sharding that all later ones have."""
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (DEVICE_AXIS,))
  return jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def check_batch(batch: int, field: str) -> None:
  """Refuses a batch that the devices cannot share.

  Raises:
    UserError: the batch does not divide over the devices.
  """
  if batch % num_devices():
    raise UserError(f"{field}: a batch of {batch} does not divide over {num_devices()} devices; choose a multiple")
