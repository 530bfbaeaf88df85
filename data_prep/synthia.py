"""Prepares SYNTHIA-RAND-CITYSCAPES (Ros et al., CVPR 2016): 9,400 rendered frames, 16 of Cityscapes' classes.

From https://synthia-dataset.net/downloads, DIR being the unpacked folder:

  DIR/RGB/0000000.png …
  DIR/GT/LABELS/0000000.png …     PNGs of 16 bits, the class in the first of three channels

GT/COLOR and Depth are not needed. Prepared split: train.
"""

import sys
from collections.abc import Sequence

from data_prep import core

SPLITS = (core.Split("train", {}),)


def main(argv: Sequence[str] | None = None) -> int:
  """Prepares the data set; returns the exit status."""
  return core.main("synthia", __doc__, SPLITS, argv)


if __name__ == "__main__":
  sys.exit(main())
