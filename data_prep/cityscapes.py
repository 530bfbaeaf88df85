"""Prepares Cityscapes (Cordts et al., CVPR 2016): 2,975 training, 500 validation and 1,525 test photos, 19 classes.

From https://www.cityscapes-dataset.com (registration), both zips unpacked into DIR:

  DIR/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png …     leftImg8bit_trainvaltest.zip
  DIR/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png …      gtFine_trainvaltest.zip

and alike for val and test; the test photos may be missing, and their labels are published as ignored throughout.
Prepared splits: train, val, test.
"""

import sys
from collections.abc import Sequence

from data_prep import core

SPLITS = (
  core.Split("train", {"split": "train"}),
  core.Split("val", {"split": "val"}),
  core.Split("test", {"split": "test"}, needs="leftImg8bit/test"),
)


def main(argv: Sequence[str] | None = None) -> int:
  """Prepares the data set; returns the exit status."""
  return core.main("cityscapes", __doc__, SPLITS, argv)


if __name__ == "__main__":
  sys.exit(main())
