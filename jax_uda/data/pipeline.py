"""From sources to batches on the host. Grain decides the order and reads ahead; its threads decode and fit.

Draws are numbered over the whole run and all processes: draw d of an endless shuffle is the same image whatever the
number of processes is, and process p of P takes the draws p, p + P, p + 2P, …
"""

from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from jax_uda.data.transforms import fit, pad
from jax_uda.errors import UserError


def train_stream(
  sources: Sequence[Any],
  batch: int,
  canvas: tuple[int, int],
  seed: int,
  start: int,
  subset: tuple[int, ...] | None = None,
  process_index: int = 0,
  process_count: int = 1,
  threads: int = 2,
  prefetch: int = 4,
) -> Iterator[dict[str, np.ndarray]]:
  """Draws batches without end from the sources' concatenation, shuffled anew in each epoch.

  Args:
    sources: see `sources.py`; a missing label is ignored throughout.
    batch: examples a batch *of this process*; the global batch is `batch * process_count`.
    canvas: (H, W) that every image is fitted to, see `transforms.fit`.
    seed: of the order; not negative.
    start: how many batches were drawn before: goes on as if it had never stopped, at no cost.
    subset: indices into the concatenation to draw from; None draws from all.
    process_index: which of the processes this is.
    process_count: number of processes.
    threads: how many threads decode; 0 decodes in the caller's.
    prefetch: batches read ahead; at least one a thread, since each thread makes whole batches.

  Returns:
    An iterator of {image uint8 [b, H, W, 3], label uint8 [b, H, W], size int32 [b, 2], draw int32 [b] the number of
    the draw, domain int32 [b] which of the sources}.

  Raises:
    UserError: nothing to draw from, or an index outside the sources; while iterating, an image that cannot be read.
  """
  ends = np.cumsum([len(source) for source in sources])
  indices = np.arange(ends[-1]) if subset is None else np.asarray(subset, np.int64)
  if not indices.size:
    raise UserError("no image to draw from: the data set or the chosen subset is empty; choose at least one")
  if indices.min() < 0 or indices.max() >= ends[-1]:
    raise UserError(f"a subset goes from image {indices.min()} to {indices.max()}, but the data have {ends[-1]}; "
                    "use a subset made for these data")

  def read(index: int) -> dict[str, np.ndarray]:
    domain = np.searchsorted(ends, index, side="right")
    example = sources[domain][int(index - ends[domain] + len(sources[domain]))]
    return fit(example["image"], example.get("label"), canvas) | {"domain": np.int32(domain)}

  def load(drawn: tuple[int, int]) -> dict[str, np.ndarray]:
    draw, index = drawn
    return read(int(index)) | {"draw": np.int32(draw)}

  draws = grain.MapDataset.source(indices).seed(seed).shuffle().repeat().map_with_index(lambda *drawn: drawn)
  batches = draws[process_index::process_count].map(load)
  # Endless all the same; but otherwise the number of batches, rounded up, overflows where a batch is one example.
  batches = batches.batch(batch, drop_remainder=True)
  ahead = max(prefetch, threads)
  stream = iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)))
  stream.set_state({"next_index": start})
  return stream


def eval_batches(
  source: Any,
  batch: int,
  canvas: tuple[int, int] | None,
  process_index: int = 0,
  process_count: int = 1,
  threads: int = 2,
  indices: Sequence[int] | None = None,
) -> Iterator[dict[str, Any]]:
  """Goes once through a source, in order; the processes share its images, each in the same number of batches.

  Args:
    source: see `sources.py`.
    batch: examples a batch of this process; the last ones are filled up by repetition, as are unreadable images of a
      source that is `Tolerant` (bad_images.py).
    canvas: (H, W) that every image is fitted to; None keeps sizes and pads to the largest image of the batch.
    process_index: which of the processes this is.
    process_count: number of processes.
    threads: how many threads decode; 0 decodes in the caller's.
    indices: which images, in this order; None takes all.

  Returns:
    An iterator of {image uint8 [b, H, W, 3], label uint8 [b, H, W], size int32 [b, 2] of the content, full_size int32
    [b, 2] of the decoded image, index int32 [b] in the source, valid bool [b] false for repetitions, id tuple of str,
    full_image tuple of uint8 [h, w, 3] as decoded, full_label tuple of uint8 [h, w] likewise, or None where there is no
    label}.

  Raises:
    UserError: while iterating, an image that cannot be read.
  """
  indices = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
  count = len(indices)
  num_batches = -(-count // (batch * process_count))
  places = np.arange(process_index, num_batches * batch * process_count, process_count).reshape(num_batches, batch)

  def load(step: int) -> dict[str, Any]:
    index = indices[np.minimum(places[step], count - 1)]
    examples = [source[int(i)] for i in index]
    labels = tuple(example.get("label") for example in examples)
    full_size = np.array([example["image"].shape[:2] for example in examples], np.int32)
    place, shape = (pad, tuple(full_size.max(axis=0))) if canvas is None else (fit, canvas)
    placed = [place(example["image"], label, shape) for example, label in zip(examples, labels, strict=True)]
    return {key: np.stack([one[key] for one in placed]) for key in placed[0]} | {
      "full_size": full_size,
      "index": index.astype(np.int32),
      "valid": (places[step] < count) & [example.get("index", i) == i for example, i in zip(examples, index, strict=True)],
      "id": tuple(example["id"] for example in examples),
      "full_image": tuple(example["image"] for example in examples),
      "full_label": labels,
    }

  batches = grain.MapDataset.range(num_batches).map(load)
  return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)))
