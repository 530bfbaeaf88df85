"""Prepares ADE20K as in the scene parsing challenge (Zhou et al., CVPR 2017): 20,210 and 2,000 photos, 150 classes.

From http://sceneparsing.csail.mit.edu, ADEChallengeData2016.zip, DIR being the unpacked folder ADEChallengeData2016:

  DIR/images/training/ADE_train_00000001.jpg …
  DIR/annotations/training/ADE_train_00000001.png …     0 is "other" and ignored, 1 to 150 are the classes

and alike for validation. Prepared splits: training, validation.
"""

import sys
from collections.abc import Sequence

from data_prep import core

SPLITS = tuple(core.Split(split, {"split": split}) for split in ("training", "validation"))


def main(argv: Sequence[str] | None = None) -> int:
  """Prepares the data set; returns the exit status."""
  return core.main("ade20k", __doc__, SPLITS, argv)


if __name__ == "__main__":
  sys.exit(main())
