"""Tiny raw data sets in the formats in which they are published.

Each function writes one into `root` and returns what reading it must give, [(id, image, label)] in order, the label None
where there is none. Ids and train ids are both written out by hand here.
"""

import struct
import zlib

import numpy as np
from PIL import Image

# Cityscapes ids, and what they are as train ids: road, sidewalk, building, bicycle; not scored; sky, car, person, pole.
IDS = np.array([[7, 8, 11, 33], [0, 34, 255, 9], [23, 26, 24, 17]], np.uint8)
TRAIN_IDS = np.array([[0, 1, 2, 18], [255, 255, 255, 255], [10, 13, 11, 5]], np.uint8)

# SYNTHIA ids in the same way: sky, building, road, wall; void, lane marking, terrain, truck; rider, bus, person, light.
SYNTHIA_IDS = np.array([[1, 2, 3, 21], [0, 22, 16, 18], [17, 19, 10, 15]], np.uint16)
SYNTHIA16_IDS = np.array([[9, 2, 0, 3], [255, 255, 255, 255], [11, 13, 10, 6]], np.uint8)

CITYSCAPES19_IDS = np.array([[0, 18, 9, 255], [255, 3, 16, 5], [7, 7, 1, 0]], np.uint8)

ADE20K_IDS = np.array([[0, 1, 150, 2], [13, 0, 21, 3], [149, 7, 12, 1]], np.uint8)
ADE150_IDS = np.array([[255, 0, 149, 1], [12, 255, 20, 2], [148, 6, 11, 0]], np.uint8)

CAMVID_IDS = np.array([[0, 10, 11, 3], [11, 11, 8, 4], [5, 6, 7, 9]], np.uint8)
CAMVID11_IDS = np.array([[0, 10, 255, 3], [255, 255, 8, 4], [5, 6, 7, 9]], np.uint8)


def make_gta5(root):
  """`images/`, `labels/` with palettes; the label of the second image has twice its resolution."""
  expected = []
  for i in range(3):
    ids, train_ids = np.roll(IDS, i, axis=1), np.roll(TRAIN_IDS, i, axis=1)
    image = _image(ids.shape, i)
    save(root / f"images/{i + 1:05}.png", image)
    save_palette(root / f"labels/{i + 1:05}.png", ids.repeat(2, 0).repeat(2, 1) if i == 1 else ids)
    expected.append((f"{i + 1:05}", image, train_ids))
  return expected


def make_synthia(root):
  """`RGB/`, `GT/LABELS/` of three 16-bit channels: the class, the instance, and something to mistake for the class."""
  expected = []
  for i in range(2):
    ids, train_ids = np.roll(SYNTHIA_IDS, i, axis=0), np.roll(SYNTHIA16_IDS, i, axis=0)
    image = _image(ids.shape, i)
    save(root / f"RGB/{i:07}.png", image)
    save_rgb16(root / f"GT/LABELS/{i:07}.png", ids, ids[::-1] + 300, ids[:, ::-1])
    expected.append((f"{i:07}", image, train_ids))
  return expected


def make_cityscapes(root, split="val", labelled=True):
  """`leftImg8bit/`, `gtFine/` by city, with the files there that are not for training."""
  expected = []
  for i, frame in enumerate(("bonn_000003_000019", "bonn_000004_000019", "ulm_000000_000019")):
    city = frame.partition("_")[0]
    ids, train_ids = np.roll(IDS, i, axis=1), np.roll(TRAIN_IDS, i, axis=1)
    image = _image(ids.shape, i)
    save(root / f"leftImg8bit/{split}/{city}/{frame}_leftImg8bit.png", image)
    if labelled:
      labels = root / f"gtFine/{split}/{city}"
      save(labels / f"{frame}_gtFine_labelIds.png", ids)
      save(labels / f"{frame}_gtFine_instanceIds.png", ids + 1)
      save(labels / f"{frame}_gtFine_color.png", image)
    expected.append((frame, image, train_ids if labelled else None))
  return expected


def make_bdd100k(root, split="val", first=False):
  """`images/10k/`, `labels/sem_seg/masks/`; `first`: as first published, in `seg/`."""
  expected = []
  for i, name in enumerate(("0004a4c0-d4dff0ad", "7d06fefd-f7be05a6")):
    train_ids = np.roll(CITYSCAPES19_IDS, i, axis=0)
    image = _blocks(train_ids.shape, i)
    images, labels = ("seg/images", "seg/labels") if first else ("images/10k", "labels/sem_seg/masks")
    save(root / f"{images}/{split}/{name}.jpg", image, quality=100)
    save(root / f"{labels}/{split}/{name}{'_train_id' if first else ''}.png", train_ids.repeat(8, 0).repeat(8, 1))
    expected.append((name, image, train_ids.repeat(8, 0).repeat(8, 1)))
  return expected


def make_nthu(root, city="Rome", count=12):
  """`<city>/Images/Test/`, `<city>/Labels/Test/*_eval.png`."""
  expected = []
  for i in range(count):
    ids, train_ids = np.roll(IDS, i, axis=1), np.roll(TRAIN_IDS, i, axis=1)
    name, image = f"pano_{i:05}_2_180", _image(ids.shape, i)
    save(root / f"{city}/Images/Test/{name}.png", image)
    save(root / f"{city}/Labels/Test/{name}_eval.png", ids)
    expected.append((name, image, train_ids))
  return expected


def make_ade20k(root, split="validation"):
  """`images/`, `annotations/`, each image with a size of its own."""
  expected = []
  for i in range(2):
    ids, train_ids = (np.roll(label, i, axis=1)[: 3 - i].repeat(8, 0).repeat(8, 1) for label in (ADE20K_IDS, ADE150_IDS))
    name, image = f"ADE_{split[:-3] if split == 'training' else 'val'}_{i + 1:08}", _blocks((3 - i, 4), i)
    save(root / f"images/{split}/{name}.jpg", image, quality=100)
    save(root / f"annotations/{split}/{name}.png", ids)
    expected.append((name, image, train_ids))
  return expected


def make_camvid(root, split="train"):
  """`<split>/`, `<split>annot/`."""
  expected = []
  for i, name in enumerate(("0001TP_006690", "Seq05VD_f00000")):
    ids, train_ids = np.roll(CAMVID_IDS, i, axis=1), np.roll(CAMVID11_IDS, i, axis=1)
    image = _image(ids.shape, i)
    save(root / f"{split}/{name}.png", image)
    save(root / f"{split}annot/{name}.png", ids)
    expected.append((name, image, train_ids))
  return expected


def save(path, array, **options):
  """Saves uint8 [H, W] or RGB [H, W, 3]."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)


def save_palette(path, ids):
  """Saves ids with a palette in which no colour says what its index is."""
  image = Image.fromarray(np.asarray(ids, np.uint8), mode="L")
  image.putpalette([value for i in range(256) for value in (255 - i, i // 2, 77)])
  path.parent.mkdir(parents=True, exist_ok=True)
  image.save(path)
  assert Image.open(path).mode == "P"


def save_rgb16(path, red, green, blue):
  """Saves a PNG of three 16-bit channels, written out byte by byte: no library's order of channels has a say in it."""
  pixels = np.stack([red, green, blue], axis=-1).astype(">u2")
  height, width = pixels.shape[:2]
  lines = b"".join(b"\0" + line.tobytes() for line in pixels)
  chunks = {b"IHDR": struct.pack(">2I5B", width, height, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(lines), b"IEND": b""}
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks.items()
  ))


def _image(size, seed):
  return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def _blocks(size, seed):
  """Grey blocks of 8x8 pixels, which JPEG keeps exactly."""
  grey = np.random.default_rng(seed).integers(0, 256, size, np.uint8).repeat(8, 0).repeat(8, 1)
  return np.stack([grey] * 3, axis=-1)
