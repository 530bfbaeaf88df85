import itertools
import threading

import numpy as np
import pytest

from jax_uda.bad_images import BadImages, Tolerant
from jax_uda.data.pipeline import eval_batches, train_stream
from jax_uda.errors import UserError


class Numbered:
  """Images that hold their own index, and sizes that differ; those in `broken` cannot be read."""

  def __init__(self, count, broken=(), labelled=True):
    self.count, self.broken, self.labelled, self.reads = count, broken, labelled, []

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    self.reads.append(index)
    if index in self.broken:
      raise UserError(f"image {index} is broken; mend it")
    height, width = 4 + index % 2, 8
    example = {"image": np.full((height, width, 3), index, np.uint8), "id": f"n{index}"}
    return example | ({"label": np.full((height, width), index % 19, np.uint8)} if self.labelled else {})


def take(count, sources, batch=3, seed=0, start=0, canvas=(4, 8), **options):
  return list(itertools.islice(train_stream(sources, batch, canvas, seed, start, **options), count))


def drawn(batches):
  """[(draw, domain, index within its source)], in order of the draws."""
  return sorted((int(draw), int(domain), int(image[0, 0, 0])) for batch in batches
                for draw, domain, image in zip(batch["draw"], batch["domain"], batch["image"], strict=True))


def assert_same(these, those):
  assert len(these) == len(those)
  for this, that in zip(these, those, strict=True):
    assert this.keys() == that.keys()
    for name in this:
      np.testing.assert_array_equal(this[name], that[name])


def test_batches_have_their_shapes():
  (batch,) = take(1, [Numbered(5)], canvas=(6, 9))
  assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
    "image": ((3, 6, 9, 3), "uint8"), "label": ((3, 6, 9), "uint8"), "size": ((3, 2), "int32"),
    "draw": ((3,), "int32"), "domain": ((3,), "int32")}
  np.testing.assert_array_equal(batch["label"][:, 0, 0], batch["image"][:, 0, 0, 0])


def test_a_seed_decides_the_order():
  source = Numbered(50)
  assert_same(take(20, [source], seed=5), take(20, [source], seed=5, threads=1, prefetch=1))
  assert_same(take(4, [source], seed=5), take(4, [source], seed=5, threads=0))
  assert drawn(take(20, [source], seed=5)) != drawn(take(20, [source], seed=6))


def test_start_goes_on_as_if_never_stopped_and_reads_nothing_twice():
  source = Numbered(7)
  assert_same(take(12, [source])[5:], take(7, [source], start=5))
  source = Numbered(7)
  take(1, [source], start=10**6, threads=0)
  assert len(source.reads) == 3


def test_every_image_once_an_epoch_in_a_new_order():
  order = [index for _, _, index in drawn(take(14, [Numbered(7)], batch=2))]  # 4 epochs
  epochs = [order[i : i + 7] for i in range(0, 28, 7)]
  assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) > 1


def test_sources_are_concatenated():
  draws = drawn(take(6, [Numbered(4), Numbered(3), Numbered(5)], batch=2))
  assert [draw for draw, _, _ in draws] == list(range(12))
  assert {(domain, index) for _, domain, index in draws} == {
    (0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (2, 3), (2, 4)}


def test_batches_of_one():
  assert sorted(index for _, _, index in drawn(take(5, [Numbered(5)], batch=1))) == list(range(5))


def test_subset_of_the_concatenation():
  draws = drawn(take(4, [Numbered(4), Numbered(3)], batch=2, subset=(1, 3, 4, 6)))
  for epoch in (draws[:4], draws[4:]):
    assert {(domain, index) for _, domain, index in epoch} == {(0, 1), (0, 3), (1, 0), (1, 2)}


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_draws_of_each_step(processes):
  sources = [Numbered(5), Numbered(4)]
  whole = take(6, sources, batch=4, seed=2, start=3)
  parts = [take(6, sources, batch=4 // processes, seed=2, start=3, process_index=p, process_count=processes)
           for p in range(processes)]
  for step in range(6):
    assert drawn([whole[step]]) == drawn([part[step] for part in parts])
  assert all((batch["draw"] % processes == p).all() for p, part in enumerate(parts) for batch in part)


def test_unlabelled_source_is_ignored_throughout():
  assert (take(1, [Numbered(3, labelled=False)])[0]["label"] == 255).all()


def test_nothing_to_draw_and_wrong_subset():
  for sources, subset, said in (([Numbered(0)], None, "no image to draw"), ([Numbered(3)], (), "no image to draw"),
                                ([Numbered(3)], (0, 3), "0 to 3, but the data have 3"),
                                ([Numbered(3)], (-1, 2), "-1 to 2")):
    with pytest.raises(UserError, match=said):
      take(1, sources, subset=subset)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_bad_image_surfaces_as_it_is(threads):
  for read in (lambda source: take(10, [source], threads=threads),
               lambda source: list(eval_batches(source, 3, (4, 8), threads=threads))):
    with pytest.raises(UserError) as error:
      read(Numbered(4, broken=(2,)))
    assert str(error.value) == "image 2 is broken; mend it"


class Meeting(Numbered):
  """The first reads wait for each other."""

  def __init__(self, count, readers=2, broken=()):
    super().__init__(count, broken)
    self.readers, self.first_reads, self.barrier = readers, itertools.count(), threading.Barrier(readers)

  def __getitem__(self, index):
    if next(self.first_reads) < self.readers:
      self.barrier.wait(timeout=30)
    return super().__getitem__(index)


def test_threads_read_side_by_side():
  for threads in (2, 7):
    take(2, [Meeting(8, threads)], batch=1, threads=threads)
  list(eval_batches(Meeting(8), 1, (4, 8), threads=2))


# Scoring


def test_eval_goes_through_in_order_and_fills_up():
  source = Numbered(7)
  batches = list(eval_batches(source, 3, (10, 16)))
  assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, 6, 6]]
  assert [batch["valid"].tolist() for batch in batches] == [[True] * 3, [True] * 3, [True, False, False]]
  assert source.reads.count(0) == 1
  first = batches[0]
  assert first["image"].shape == (3, 10, 16, 3) and first["label"].shape == (3, 10, 16)
  assert first["size"].tolist() == [[8, 16], [10, 16], [8, 16]]
  assert first["full_size"].tolist() == [[4, 8], [5, 8], [4, 8]] and first["full_size"].dtype == np.int32
  assert first["id"] == ("n0", "n1", "n2") and first["index"].dtype == np.int32
  assert [label.shape for label in first["full_label"]] == [(4, 8), (5, 8), (4, 8)]
  assert first["label"][1].tolist() == [[1] * 16] * 10 and first["label"][0, 8:].min() == 255


def test_eval_processes_yield_equally_many_batches():
  for count, batch, processes in ((7, 2, 2), (8, 2, 2), (1, 2, 4), (9, 3, 1), (0, 2, 2)):
    parts = [list(eval_batches(Numbered(count), batch, (4, 8), p, processes)) for p in range(processes)]
    assert len({len(part) for part in parts}) == 1
    seen = [int(index) for part in parts for b in part for index in b["index"][b["valid"]]]
    assert sorted(seen) == list(range(count))


def test_eval_of_chosen_images_without_labels():
  batches = list(eval_batches(Numbered(9, labelled=False), 2, (4, 8), indices=[8, 3, 5]))
  assert [batch["index"].tolist() for batch in batches] == [[8, 3], [5, 5]]
  assert batches[0]["full_label"] == (None, None) and (batches[0]["label"] == 255).all()


def test_eval_without_a_canvas_keeps_sizes():
  (batch,) = eval_batches(Numbered(3), 3, None)
  assert batch["image"].shape == (3, 5, 8, 3) and batch["size"].tolist() == [[4, 8], [5, 8], [4, 8]]
  assert (batch["image"][2, :4] == 2).all() and (batch["image"][2, 4] == 0).all()
  assert (batch["label"][2, 4] == 255).all() and batch["label"][1].tolist() == [[1] * 8] * 5


# Unreadable images


def tolerant(tmp_path, source, limit=2):
  return Tolerant(source, BadImages(tmp_path / "bad_images.json", limit))


def replaced(index, count, broken):
  return next(i % count for i in range(index, index + count) if i % count not in broken)


@pytest.mark.parametrize("threads", [0, 4])
@pytest.mark.parametrize("broken", [(), (2,), (5,), (2, 3), (0, 5)])
def test_bad_images_give_way_to_the_next_readable_one(tmp_path, capsys, broken, threads):
  stream = take(10, [Numbered(4), tolerant(tmp_path, Numbered(6, broken))], threads=threads)
  for (draw, domain, index), (d, o, there) in zip(drawn(stream), drawn(take(10, [Numbered(4), Numbered(6)])), strict=True):
    assert (draw, domain, index) == (d, o, replaced(there, 6, broken) if o else there)
  said = sorted(line.partition("images: ")[2] for line in capsys.readouterr().out.splitlines())
  assert said == [f"image {index} is broken; mend it" for index in broken]  # each once


def test_label_and_image_are_of_the_same_replacement(tmp_path):
  for batch in take(4, [tolerant(tmp_path, Numbered(6, (1, 2)))], batch=6):
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"][:, 0, 0])
    assert sorted(batch["image"][:, 0, 0, 0]) == [0, 3, 3, 3, 4, 5]


@pytest.mark.parametrize("threads", [0, 2])
def test_one_bad_image_more_is_an_error(tmp_path, threads):
  with pytest.raises(UserError, match=r"image \d is broken; mend it; or .*config\.max_bad_images=2") as error:
    take(20, [tolerant(tmp_path, Numbered(6, (1, 3, 4)))], threads=threads)
  assert "\n" not in str(error.value)


def test_a_stream_that_goes_on_draws_the_same_replacements_and_counts_on(tmp_path, capsys):
  whole = take(12, [tolerant(tmp_path, Numbered(7, (2, 6)))])
  assert capsys.readouterr().out.count("passed over") == 2
  assert_same(whole[5:], take(7, [tolerant(tmp_path, Numbered(7, (2, 6)))], start=5))
  assert not capsys.readouterr().out  # named already
  with pytest.raises(UserError, match="image 4"):
    take(7, [tolerant(tmp_path, Numbered(7, (2, 4, 6)))], start=5)


def test_the_limit_is_for_all_sources_together(tmp_path):
  bad_images = BadImages(tmp_path / "bad_images.json", 1)
  sources = [Tolerant(Numbered(3, (1,)), bad_images), Tolerant(Numbered(4, (2,)), bad_images)]
  with pytest.raises(UserError, match="max_bad_images=1"):
    take(7, sources)


def test_the_limit_is_for_all_processes_together(tmp_path):
  (tmp_path / "bad_images_1.json").write_text('["image 1 is broken; mend it"]')
  with pytest.raises(UserError, match="image 2"):
    take(6, [tolerant(tmp_path, Numbered(6, (1, 2)), limit=1)])
  assert not (tmp_path / "bad_images.json").exists()


def test_threads_that_meet_at_a_bad_image_name_it_once(tmp_path, capsys):
  take(4, [tolerant(tmp_path, Meeting(2, readers=4, broken=(0,)), limit=1)], batch=1, threads=4, prefetch=4)
  assert capsys.readouterr().out.count("passed over, 1 of at most 1") == 1


def test_no_readable_image_at_all(tmp_path):
  with pytest.raises(UserError, match="none of the 2 images"):
    take(1, [tolerant(tmp_path, Numbered(2, (0, 1)))])


def test_eval_leaves_bad_images_out(tmp_path):
  batches = list(eval_batches(tolerant(tmp_path, Numbered(5, (1, 4))), 3, (4, 8)))
  assert [batch["valid"].tolist() for batch in batches] == [[True, False, True], [True, False, False]]
  assert [name for batch in batches for name in np.array(batch["id"])[batch["valid"]]] == ["n0", "n2", "n3"]
