"""Prepares the segmentation part of BDD100K (Yu et al., CVPR 2020): 7,000 and 1,000 photos, Cityscapes' 19 classes.

From http://bdd-data.berkeley.edu (registration), "10K Images" and "Segmentation" unpacked into DIR, in either of the
layouts that were published:

  DIR/images/10k/train/0a0a0b1a-7c39d841.jpg …     DIR/labels/sem_seg/masks/train/0a0a0b1a-7c39d841.png …
  DIR/seg/images/train/0a0a0b1a-7c39d841.jpg …     DIR/seg/labels/train/0a0a0b1a-7c39d841_train_id.png …

and alike for val; the labels hold train ids. Prepared splits: train, val.
"""

import sys
from collections.abc import Sequence

from data_prep import core

SPLITS = tuple(core.Split(split, {"split": split}) for split in ("train", "val"))


def main(argv: Sequence[str] | None = None) -> int:
  """Prepares the data set; returns the exit status."""
  return core.main("bdd100k", __doc__, SPLITS, argv)


if __name__ == "__main__":
  sys.exit(main())
