"""MXNet's `.params` files, read without MXNet: arrays, then their names, all little-endian.

| bytes | what |
| --- | --- |
| uint64, uint64 | 0x112, 0 |
| uint64 | number of arrays |
| for each: uint32 | version: V1, V2 or V3; in the oldest files there is none, and this is the number of axes already |
| int32 | from V2 on: storage, 0 where it is dense |
| uint32, then int64 each | number of axes, shape; the oldest files have uint32 each |
| int32, int32 | device, which is of no use here |
| int32, values | type, one of `TYPES`; values in C order |
| uint64; for each uint64, bytes | number of names; length and name |

An array without axes ends there: it is empty. Of V3 it has one value, and -1 axes are what is empty.
"""

import math
import struct

import numpy as np

MAGIC = 0x112
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
TYPES = tuple(map(np.dtype, ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")))
MOST_AXES = 32
SMALLEST = 12  # bytes: the number of axes of an array, and the length of its name
EMPTY = np.zeros(0, np.float32)


class _Reader:
  def __init__(self, content: bytes):
    self._content, self._at = memoryview(content), 0

  def take(self, size: int) -> memoryview:
    found = self._content[self._at : self._at + size]
    if len(found) < size:
      raise ValueError(f"it ends at byte {len(self._content)}, before what it announces")
    self._at += size
    return found

  def number(self, kind: str) -> int:
    return struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)))[0]


def read(content: bytes) -> dict[str, np.ndarray]:
  """The arrays of a file by name, called and shaped as they are there: `arg:conv1a_weight`, `aux:bn7_moving_mean`.

  Raises:
    ValueError: it is no such file, it is cut off, or holds what networks do not (sparse or nameless arrays).
  """
  reader = _Reader(content)
  if reader.number("Q") != MAGIC:
    raise ValueError("it does not begin as MXNet's files do")
  reader.take(8)
  count = reader.number("Q")
  if SMALLEST * count > len(content):
    raise ValueError(f"it has no room for the {count} arrays that it announces")
  arrays = [_array(reader) for _ in range(count)]
  if (named := reader.number("Q")) != count:
    raise ValueError(f"it holds {count} arrays but {named} names")
  names = [bytes(reader.take(reader.number("Q"))).decode() for _ in range(count)]
  if len(set(names)) != len(names):
    raise ValueError("a name stands there twice")
  return dict(zip(names, arrays, strict=True))


def _array(reader: _Reader) -> np.ndarray:
  version = axes = reader.number("I")
  if version in (V2, V3) and (storage := reader.number("i")) != 0:
    raise ValueError(f"it holds a sparse array (storage {storage})")
  if version in (V1, V2, V3):
    axes = reader.number("i")
  if axes > MOST_AXES:
    raise ValueError(f"an array of {axes} axes is none that MXNet writes")
  if axes < 0 or (axes == 0 and version != V3):
    return EMPTY
  shape = tuple(reader.number("q" if version in (V1, V2, V3) else "I") for _ in range(axes))
  reader.take(8)
  kind = reader.number("i")
  if not 0 <= kind < len(TYPES) or min(shape, default=0) < 0:
    raise ValueError(f"it holds an array of unknown type {kind} and shape {shape}")
  values = reader.take(math.prod(shape) * TYPES[kind].itemsize)
  return np.frombuffer(values, TYPES[kind]).reshape(shape)
