"""Images that a run cannot read: named, counted, and passed over as far as its config allows."""

import threading
from dataclasses import dataclass
from typing import Any, ClassVar

from etils import epath

from jax_uda import files, parallel
from jax_uda.data.sources import View
from jax_uda.errors import UserError


@dataclass(frozen=True)
class BadImages:
  """The images that could not be read: each is named once, and one more than `limit` is an error; None allows all.

  Kept in the file `path`, so that later stages and a resumed run count on. Safe from several threads. Of several processes
  each has a file of its own and reads all of them; where these meet at their last bad images they may allow a few more.
  """

  path: epath.Path
  limit: int | None
  # One for all: the threads of a stage may still read ahead while the next one begins.
  _lock: ClassVar[threading.Lock] = threading.Lock()

  def known(self) -> list[str]:
    """What was said of each so far."""
    lists = sorted(self.path.parent.glob(f"{self.path.stem}*{self.path.suffix}"))
    return list(dict.fromkeys(said for file in lists for said in files.read_json(file)))

  def add(self, error: UserError) -> None:
    """Notes what a source says of an image that it cannot read; raises UserError if that is one too many."""
    said = str(error)
    with self._lock:
      known = self.known()
      if said in known:
        return
      if self.limit is not None and len(known) >= self.limit:
        raise UserError(f"{said}; or allow more than config.max_bad_images={self.limit}") from error
      mine = self._mine()
      files.write_json(mine, [*(files.read_json(mine) if mine.exists() else ()), said], by_each=True)
      number = "" if self.limit is None else f", {len(known) + 1} of at most {self.limit} bad images"
      print(f"passed over{number}: {said}", flush=True)

  def _mine(self) -> epath.Path:
    index = parallel.process()["process_index"]
    return self.path.with_name(f"{self.path.stem}_{index}{self.path.suffix}") if index else self.path


@dataclass(frozen=True)
class Tolerant(View):
  """A source that gives, in place of an image that cannot be read, the next one that can; the first follows the last.

  Which one that is depends on the data alone. Examples carry the `index` that they were read at.
  """

  bad_images: BadImages

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Raises UserError where too many images, or all of them, cannot be read."""
    for step in range(len(self)):
      found = (index + step) % len(self)
      try:
        return {**self.source[found], "index": found}
      except UserError as error:
        self.bad_images.add(error)
    raise UserError(f"none of the {len(self)} images can be read, see {self.bad_images.path}; mend them")
