"""A street world in two looks, drawn on demand: the built-in data set of the demo and the tests.

`game` is a clean, saturated noon. `photo` is another town under another lens: textured, hazed, noisy, in warm and weak
light. Labels are Cityscapes' 19 train ids and 255. An image is a pure function of its domain, split,
index and size.

World axes, metres, from the camera's foot point: x to the right, y up, z ahead; every polygon is [..., corners, 3].
The frame is 2 wide and 1 high whatever the size in pixels, so a scene stays the same at another size.
"""

import colorsys
import itertools
import math
import zlib
from bisect import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial

import cv2
import numpy as np

from jax_uda.errors import UserError

SPLITS = ("train", "val", "test")
(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN,
 SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE) = range(19)
IGNORE = 255

NEAREST, FARTHEST = 0.8, 150.0  # metres: what is clipped in front of the lens, and where the street ends
MILESTONES = np.geomspace(NEAREST, FARTHEST, 12)
CIRCLE = np.array([(math.cos(t), math.sin(t), 0) for t in np.arange(24) * math.pi / 12])
SUBPIXEL = 4                    # bits of sub-pixel precision of OpenCV's polygons
SMALLEST = 0.003                # frame heights: what is smaller both ways is left out, as are details thrice as large
DEPTH_SCALE = 50.0              # metres: depth is kept as the byte 255 exp(-z / DEPTH_SCALE)
UNLABELLED = -1
SEE_THROUGH = np.zeros(3)       # the colour of what has a label and no surface
SHARED_PAINTS = ("asphalt", "pavement", "marking", "grass", "foliage", "bark", "metal")  # mixed once an image

Range = tuple[float, float]
Colour = np.ndarray


@dataclass(frozen=True)
class Domain:
  """Ranges, probabilities and rates that tell one domain's streets from the other's."""

  horizon: Range            # frame heights from the top
  focal: Range              # frame heights
  camera_height: Range
  lane: Range               # width, metres
  lanes: tuple[int, int]    # to the left of the camera's lane
  parking: float            # probability of a parking lane, per side
  pavement: Range           # width
  verge: float              # probability of a strip of grass behind the pavement, per side
  built: float              # share of the lots that are built up to the pavement
  storeys: tuple[int, int]
  crossing: float           # probability of a crossing street
  traffic: float            # gap between vehicles in a lane, metres
  people: float             # expected numbers in an image from here on
  cyclists: float
  motorcyclists: float
  trees: float
  posts: float
  railings: float
  bonnet: float             # probability that the own car is in the picture
  hardness: Range           # of the light, see `draw_look`
  paints: Mapping[str, tuple[Range, Range, Range]] = field(default_factory=dict)  # that are not as in PAINT


PAINT = {  # hue, saturation, value
  "asphalt": ((0.55, 0.70), (0.00, 0.12), (0.28, 0.46)),
  "pavement": ((0.05, 0.15), (0.03, 0.16), (0.56, 0.76)),
  "marking": ((0.10, 0.16), (0.00, 0.10), (0.92, 1.00)),
  "grass": ((0.20, 0.32), (0.55, 0.75), (0.50, 0.68)),
  "foliage": ((0.26, 0.38), (0.55, 0.85), (0.34, 0.58)),
  "bark": ((0.05, 0.09), (0.40, 0.60), (0.30, 0.42)),
  "sky": ((0.53, 0.62), (0.15, 0.60), (0.88, 1.00)),
  "facade": ((0.00, 0.16), (0.05, 0.60), (0.45, 0.92)),
  "roof": ((0.00, 0.06), (0.30, 0.65), (0.35, 0.60)),
  "glass": ((0.52, 0.62), (0.20, 0.50), (0.22, 0.50)),
  "stone": ((0.00, 0.20), (0.03, 0.40), (0.40, 0.85)),
  "metal": ((0.50, 0.65), (0.00, 0.15), (0.35, 0.62)),
  "fence": ((0.00, 1.00), (0.00, 0.40), (0.15, 0.95)),
  "car": ((0.00, 1.00), (0.00, 0.95), (0.25, 1.00)),
  "truck": ((0.00, 1.00), (0.10, 0.85), (0.45, 0.95)),
  "bus": ((0.00, 0.18), (0.60, 0.95), (0.65, 0.95)),
  "train": ((0.30, 0.65), (0.40, 0.85), (0.50, 0.90)),
  "cloth": ((0.00, 1.00), (0.20, 0.90), (0.20, 0.95)),
  "skin": ((0.04, 0.09), (0.25, 0.60), (0.40, 0.95)),
  "sign": ((0.00, 0.66), (0.75, 1.00), (0.75, 1.00)),
}
DOMAINS = {
  "game": Domain(
    horizon=(0.40, 0.46), focal=(0.95, 1.15), camera_height=(1.7, 2.1), lane=(3.4, 4.0), lanes=(1, 3), parking=0.4,
    pavement=(2.5, 4.0), verge=0.4, built=0.65, storeys=(2, 9), crossing=0.35, traffic=16.0, people=4.5, cyclists=1.5,
    motorcyclists=1.8, trees=4.0, posts=5.0, railings=0.6, bonnet=0.2, hardness=(0.0, 0.25)),
  "photo": Domain(
    horizon=(0.44, 0.53), focal=(1.05, 1.35), camera_height=(1.2, 1.6), lane=(2.9, 3.4), lanes=(1, 1), parking=0.7,
    pavement=(2.0, 5.0), verge=0.5, built=0.5, storeys=(2, 6), crossing=0.35, traffic=20.0, people=9.0, cyclists=2.5,
    motorcyclists=1.4, trees=5.0, posts=6.0, railings=0.8, bonnet=0.6, hardness=(0.6, 1.0),
    paints={  # an overcast autumn, in a town of other stone, with greyer cars and coats
      "sky": ((0.52, 0.66), (0.00, 0.10), (0.75, 0.95)),
      "asphalt": ((0.05, 0.12), (0.03, 0.12), (0.40, 0.56)),
      "pavement": ((0.05, 0.15), (0.00, 0.10), (0.42, 0.58)),
      "grass": ((0.13, 0.24), (0.25, 0.50), (0.38, 0.56)),
      "foliage": ((0.08, 0.28), (0.25, 0.65), (0.22, 0.45)),
      "facade": ((0.00, 0.12), (0.05, 0.50), (0.35, 0.75)),
      "car": ((0.00, 1.00), (0.00, 0.45), (0.15, 0.95)),
      "cloth": ((0.00, 1.00), (0.00, 0.45), (0.12, 0.75)),
    }),
}


@dataclass(frozen=True)
class StreetWorld:
  """A data set of `num` frames of one domain and split; item i is {"image", "label", "id"} as `render` gives them.

  Raises UserError for an unknown domain or split, IndexError beyond the end.
  """

  domain: str
  split: str
  num: int
  size: tuple[int, int]  # height, width

  def __post_init__(self):
    check_names(self.domain, self.split)

  def __len__(self) -> int:
    return self.num

  def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
    if not 0 <= index < self.num:
      raise IndexError(f"{self.domain}_{self.split} holds {self.num} images: there is no {index}")
    image, label = render(self.domain, self.split, index, self.size)
    return {"image": image, "label": label, "id": f"{self.domain}_{self.split}_{index:05d}"}


def render(domain: str, split: str, index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """Draws one frame: image uint8 [height, width, 3] RGB, label uint8 [height, width] of train ids or 255.

  The same arguments give the same bytes in any process and order; another size gives the same scene. Glass, wheels and
  the gaps of fences belong to what they are part of, as in Cityscapes. Raises UserError for an unknown domain or split.
  """
  check_names(domain, split)
  # Two streams of numbers: how many the pixels take depends on the size, and the layout must not notice.
  layout_seed, pixel_seed = np.random.SeedSequence([zlib.crc32(f"{domain}/{split}".encode()), index]).spawn(2)
  scene = Scene(DOMAINS[domain], np.random.default_rng(layout_seed))
  draw_street(scene)
  hardness = scene.rng.uniform(*scene.domain.hardness)
  return develop(scene, draw_look(hardness, scene.rng), size, np.random.default_rng(pixel_seed))


def check_names(domain: str, split: str) -> None:
  """Raises UserError unless the street world has this domain and split."""
  if domain not in DOMAINS:
    raise UserError(f"unknown street world domain {domain!r}, use one of {', '.join(DOMAINS)}")
  if split not in SPLITS:
    raise UserError(f"unknown street world split {split!r}, use one of {', '.join(SPLITS)}")


def pick(rng: np.random.Generator, weights: dict[str, float]) -> str:
  """One of the names, with chances in proportion to their weights."""
  bounds = list(itertools.accumulate(weights.values()))
  return list(weights)[bisect(bounds, rng.random() * bounds[-1])]


class Scene:
  """A street before a camera: a list of coloured, labelled polygons, painted in the order in which they came."""

  def __init__(self, domain: Domain, rng: np.random.Generator):
    self.domain, self.rng = domain, rng
    self.horizon = rng.uniform(*domain.horizon)
    self.focal = rng.uniform(*domain.focal)
    self.height = rng.uniform(*domain.camera_height)
    self.centre = 1.0 + rng.uniform(-0.18, 0.18)
    self.curve = rng.normal(0.0, 0.0008)  # metres to the side per square metre ahead
    self.sun = 1 if rng.random() < 0.5 else -1  # the side the light comes from
    self.paints = {**PAINT, **domain.paints}
    self.sky = self.tint("sky")
    self.tones = {name: self.tint(name) for name in SHARED_PAINTS}
    self.points: list[np.ndarray] = []   # one or many polygons, [corners, 3] or [polygons, corners, 3]
    self.colours: list[Colour] = []
    self.labels: list[int] = []          # UNLABELLED: a detail, under which the label stays

  def tint(self, name: str) -> Colour:
    """A fresh colour of this paint, RGB in 0..255."""
    hue, saturation, value = (low + (high - low) * u for (low, high), u in
                              zip(self.paints[name], self.rng.random(3).tolist(), strict=True))
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))

  def paint(self, points: np.ndarray | list, colour: Colour, label: int = UNLABELLED) -> None:
    """Adds one polygon [corners, 3] or many [polygons, corners, 3]; without a label only the image will change."""
    self.points.append(np.asarray(points, float))
    self.colours.append(colour)
    self.labels.append(label)

  def project(self, points: np.ndarray) -> np.ndarray:
    """World [..., 3] to frame [..., 2]: x in 0..2, y in 0..1."""
    x, y, z = points[..., 0], points[..., 1], np.maximum(points[..., 2], NEAREST)
    across = self.centre + self.focal * (x / z + self.curve * z)
    return np.stack([across, self.horizon + self.focal * (self.height - y) / z], -1)

  def lift(self, points: np.ndarray, z: float) -> np.ndarray:
    """Frame [..., 2] to the world's plane at z: the inverse of `project`."""
    x = (points[..., 0] - self.centre) / self.focal * z - self.curve * z * z
    return np.stack([x, self.height - (points[..., 1] - self.horizon) / self.focal * z, np.full_like(x, z)], -1)

  def expose(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paints all polygons: image uint8 [height, width, 3], label [height, width] and depth in `depth_byte`s, alike."""
    image = np.empty((*size, 3), np.uint8)
    image[:] = self.sky
    meta = np.empty((*size, 2), np.uint8)
    meta[:] = SKY, 0
    counts = np.array([points.size // 3 for points in self.points])
    starts = np.cumsum(counts) - counts
    world = np.concatenate([points.reshape(-1, 3) for points in self.points])
    frame = np.clip(self.project(world), -40, 40)
    low, high = np.minimum.reduceat(frame, starts), np.maximum.reduceat(frame, starts)
    smallest = np.where(np.array(self.labels) == UNLABELLED, 3 * SMALLEST, SMALLEST)[:, None]
    seen = ((high > 0) & (low < (2, 1))).all(-1) & (high - low > smallest).any(-1)
    depths = depth_byte(np.add.reduceat(world[:, 2], starts) / counts).tolist()
    corners = np.rint((frame * (size[1] / 2, size[0]) - 0.5) * 2**SUBPIXEL).astype(np.int32)
    colours = np.clip(self.colours, 0, 255).tolist()
    for k in np.flatnonzero(seen).tolist():
      polygons = corners[starts[k]:starts[k] + counts[k]]
      polygons = list(polygons.reshape(*self.points[k].shape[:2], 2)) if self.points[k].ndim == 3 else [polygons]
      if self.labels[k] != UNLABELLED:
        cv2.fillPoly(meta, polygons, (self.labels[k], depths[k]), cv2.LINE_8, SUBPIXEL)
      if self.colours[k] is not SEE_THROUGH:
        cv2.fillPoly(image, polygons, colours[k], cv2.LINE_AA, SUBPIXEL)
    return image, meta[..., 0].copy(), meta[..., 1].copy()


def depth_byte(z: np.ndarray) -> np.ndarray:
  """Metres [...] to the bytes that stand for them, uint8 [...]."""
  return np.rint(255 * np.exp(-z / DEPTH_SCALE)).astype(np.uint8)


def depth_metres(byte: np.ndarray) -> np.ndarray:
  """The inverse of `depth_byte`: of bytes [...], float [...]; its 0 is as far as it can tell."""
  return -DEPTH_SCALE * np.log(np.maximum(byte, 1) / 255)


# Polygons of the world.


def upright(x: float, z0: float, z1: float, y0: float, y1: float) -> np.ndarray:
  """A wall along the street, [4, 3]."""
  return np.array([[x, y0, z0], [x, y1, z0], [x, y1, z1], [x, y0, z1]])


def facing(x0: float, x1: float, y0: float, y1: float, z: float) -> np.ndarray:
  """A wall across the street, [4, 3]."""
  return np.array([[x0, y0, z], [x0, y1, z], [x1, y1, z], [x1, y0, z]])


def tile(x0: float, x1: float, z0: float, z1: float) -> np.ndarray:
  """A short piece of ground, [4, 3]."""
  return np.array([[x0, 0, z0], [x0, 0, z1], [x1, 0, z1], [x1, 0, z0]])


def strip(x0: float, x1: float) -> np.ndarray:
  """The ground from here to the street's end, [24, 3]: a corner a side at each milestone, so that it follows the curve."""
  near, far = np.zeros((2, len(MILESTONES), 3))
  near[:, 0], far[:, 0] = x0, x1
  near[:, 2] = far[:, 2] = MILESTONES
  return np.concatenate([near, far[::-1]])


def disc(x: float, y: float, z: float, radius: float, corners: int = 12) -> np.ndarray:
  """A disc that faces the camera, [corners, 3]; their number divides 24."""
  return CIRCLE[::len(CIRCLE) // corners] * radius + (x, y, z)


def stroke(start: Range, end: Range, width: float, z: float) -> np.ndarray:
  """A thick line between two points (x, y) of the plane z that faces the camera, [4, 3]."""
  (x0, y0), (x1, y1) = start, end
  scale = width / 2 / max(math.hypot(x1 - x0, y1 - y0), 1e-6)
  u, v = (y0 - y1) * scale, (x1 - x0) * scale
  return np.array([[x0 + u, y0 + v, z], [x1 + u, y1 + v, z], [x1 - u, y1 - v, z], [x0 - u, y0 - v, z]])


def quads(*corners: tuple[np.ndarray | float, np.ndarray | float, np.ndarray | float]) -> np.ndarray:
  """Four corners (x, y, z), each of arrays or numbers, to [polygons, 4, 3]."""
  polygons = np.empty((max(np.size(part) for part in corners[0]), 4, 3))
  for k, corner in enumerate(corners):
    for axis, part in enumerate(corner):
      polygons[:, k, axis] = part
  return polygons


# The street.


def draw_street(scene: Scene) -> None:
  """Paints sky, ground, what stands along the street and what stands or moves in it, each from far to near."""
  rng, domain = scene.rng, scene.domain
  lane = rng.uniform(*domain.lane)
  lanes = rng.integers(domain.lanes[0], domain.lanes[1] + 1)
  parking = rng.random(2) < domain.parking
  kerbs = np.array([lane * (lanes + 0.5), lane * 0.5]) + 2.3 * parking  # distance of the road's edges: left, right
  pavements = rng.uniform(*domain.pavement, 2)
  verges = rng.uniform(1.5, 4.0, 2) * (rng.random(2) < domain.verge)
  crossing = rng.uniform(14, 40) if rng.random() < domain.crossing else None
  fronts = kerbs + pavements + verges

  draw_sky(scene)
  draw_ground(scene, kerbs, pavements, crossing)
  draw_markings(scene, lane, lanes, crossing)
  for side, front in zip((-1, 1), fronts, strict=True):
    draw_lots(scene, side, front, crossing)

  things = []  # (z, how to draw it)
  things += place_traffic(scene, lane, lanes)
  things += place_crossing(scene, kerbs, crossing)
  for side, kerb, pavement, parked in zip((-1, 1), kerbs, pavements, parking, strict=True):
    things += place_parked(scene, side, kerb, crossing) if parked else []
    things += place_pavement(scene, side, kerb, pavement)
  for _, draw in sorted(things, key=lambda thing: -thing[0]):
    draw(scene)
  if rng.random() < domain.bonnet:
    draw_bonnet(scene)


def draw_sky(scene: Scene) -> None:
  """Clouds, and the skyline at the street's end."""
  rng = scene.rng
  milky = rng.uniform(0.2, 0.8)
  for k in range(6):  # paler towards the horizon
    band = np.array([[0, k], [2, k], [2, 7], [0, 7]]) * (1, scene.horizon / 6)
    scene.paint(scene.lift(band, FARTHEST), scene.sky + (np.array([245, 246, 250]) - scene.sky) * milky * k / 6)
  for _ in range(rng.poisson(3)):
    middle, width = rng.random(2) * (2, scene.horizon), rng.uniform(0.1, 0.5)
    cloud = middle + CIRCLE[::2, :2] * (width, 0.2 * width) * (1 + 0.2 * rng.standard_normal((12, 1)))
    scene.paint(scene.lift(cloud, FARTHEST), scene.sky + (rng.uniform(215, 255) - scene.sky) * rng.uniform(0.3, 0.8))
  for left in range(-90, 90, 15):
    if rng.random() < 0.6:
      block = facing(left, left + rng.uniform(12, 22), 0, rng.uniform(4, 26), FARTHEST)
      scene.paint(block, scene.tint("facade"), BUILDING)
    else:
      scene.paint(disc(left, 0, FARTHEST, rng.uniform(6, 14)), scene.tones["foliage"], VEGETATION)


def draw_ground(scene: Scene, kerbs: np.ndarray, pavements: np.ndarray, crossing: float | None) -> None:
  """Grass everywhere, pavements, the road and the street that crosses it.

  In metres, left and right: `kerbs` [2], how far the road's edges are from the camera; `pavements` [2], how wide they are.
  `crossing` is how far ahead the crossing street begins; None: there is none.
  """
  rng, tones = scene.rng, scene.tones
  scene.paint(tile(-500, 500, NEAREST, FARTHEST * 4), tones["grass"], TERRAIN)
  for side, kerb, pavement in zip((-1, 1), kerbs, pavements, strict=True):
    near, far = side * kerb, side * (kerb + pavement)
    scene.paint(strip(near, far), tones["pavement"], SIDEWALK)
    joints = np.arange(2.0, 25.0, rng.uniform(1.0, 2.5))
    seams = quads((near, 0, joints), (near, 0, joints + 0.07), (far, 0, joints + 0.07), (far, 0, joints))
    scene.paint(seams, tones["pavement"] * 0.85)
    scene.paint(strip(near, near + side * 0.25), tones["pavement"] * 1.15, SIDEWALK)
  scene.paint(strip(-kerbs[0], kerbs[1]), tones["asphalt"], ROAD)
  if crossing:
    scene.paint(tile(-400, 400, crossing - 2.5, crossing + 11.5), tones["pavement"], SIDEWALK)
    scene.paint(tile(-400, 400, crossing, crossing + 9), tones["asphalt"], ROAD)
    scene.paint(tile(-kerbs[0], kerbs[1], crossing - 3, crossing + 12), tones["asphalt"], ROAD)
  for _ in range(rng.poisson(3)):  # patches of another year's asphalt
    x, z = rng.uniform(-kerbs[0], kerbs[1] - 1), rng.uniform(3, 25)
    patch = tile(x, min(x + rng.uniform(0.5, 2), kerbs[1]), z, z + rng.uniform(1, 6))
    scene.paint(patch, tones["asphalt"] * rng.uniform(0.8, 1.15))


def draw_markings(scene: Scene, lane: float, lanes: int, crossing: float | None) -> None:
  """Lines between the lanes and, before a crossing street, a zebra."""
  rng, colour = scene.rng, scene.tones["marking"]
  left, right = -lane * (lanes + 0.5), lane * 0.5
  scene.paint([strip(x - 0.06, x + 0.06) for x in (left, right)], colour * 0.95)
  dash, gap, start = rng.uniform(2, 4), rng.uniform(2, 6), rng.uniform(1, 4)
  z, x = np.meshgrid(np.arange(start, 70, dash + gap), right - lane * np.arange(1, lanes + 1))
  z, x = z.ravel(), x.ravel()
  x0, x1 = x - 0.08, x + 0.08
  scene.paint(quads((x0, 0, z), (x0, 0, z + dash), (x1, 0, z + dash), (x1, 0, z)), colour)
  if crossing:
    scene.paint(tile(left, right, crossing - 1, crossing + 10), scene.tones["asphalt"])
    x, z = np.arange(left, right, 1.0), crossing - 4.5
    scene.paint(quads((x, 0, z), (x, 0, z + 3), (x + 0.5, 0, z + 3), (x + 0.5, 0, z)), colour)


# What stands along the street.


def draw_lots(scene: Scene, side: int, front: float, crossing: float | None) -> None:
  """Fills one side of the street with houses, gardens and yards, far to near."""
  rng = scene.rng
  edges = [max(NEAREST, scene.focal * front / 1.3)]  # nearer than this it is out of the picture
  while edges[-1] < FARTHEST * 0.7:
    edges.append(edges[-1] + rng.uniform(7, 18))
  for near, far in reversed(list(itertools.pairwise(edges))):
    if crossing and near < crossing + 11.5 and far > crossing - 2.5:
      continue
    if rng.random() < scene.domain.built:
      draw_house(scene, side, front, near, far)
    else:
      draw_garden(scene, side, front, near, far)


def draw_house(scene: Scene, side: int, front: float, near: float, far: float) -> None:
  """A house with its windows in perspective rows, shop fronts, sometimes a roof."""
  rng = scene.rng
  x, back = side * front, side * (front + 14)
  storey = rng.uniform(2.8, 3.6)
  storeys = int(rng.integers(scene.domain.storeys[0], scene.domain.storeys[1] + 1))
  top = storey * storeys + 0.8
  colour, glass = scene.tint("facade"), scene.tint("glass")
  lit = 0.78 if side == scene.sun else 1.0
  if rng.random() < 0.4:
    roof, eaves, ridge = scene.tint("roof"), x + side * 1.2, top + rng.uniform(1.5, 3.0)
    scene.paint(facing(eaves, back, top, ridge, near), roof * 0.85, BUILDING)
    scene.paint([[x, top, near], [eaves, ridge, near], [eaves, ridge, far], [x, top, far]], roof * lit, BUILDING)
  scene.paint(facing(x, back, 0, top, near), colour * 0.88, BUILDING)
  scene.paint(upright(x, near, far, 0, top), colour * lit, BUILDING)
  if near > 70:
    return
  scene.paint(upright(x, near, far, top - 0.4, top), colour * lit * 0.8)
  scene.paint(upright(x, near, far, 0, 0.6), colour * lit * 0.7)
  columns = max(2, round((far - near) / rng.uniform(2.2, 3.2)))
  pitch = (far - near) / columns
  wide, tall, sill = rng.uniform(0.4, 0.65), rng.uniform(0.45, 0.65), rng.uniform(0.22, 0.32)
  floor, column = (grid.ravel() for grid in np.meshgrid(np.arange(1, storeys), np.arange(columns)))
  z0, y0 = near + (column + (1 - wide) / 2) * pitch, (floor + sill) * storey
  z1, y1 = z0 + wide * pitch, y0 + tall * storey
  panes = quads((x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1))
  bright = rng.random(len(panes)) < 0.25
  scene.paint(panes, glass * lit)
  if bright.any():
    scene.paint(panes[bright], glass * lit * 1.5)
  z0 = near + (np.arange(columns) + 0.1) * pitch
  z1, y1 = z0 + 0.8 * pitch, 0.8 * storey
  scene.paint(quads((x, 0.5, z0), (x, y1, z0), (x, y1, z1), (x, 0.5, z1)), glass * 0.8)
  if rng.random() < 0.4:
    scene.paint(upright(x, near, far, 0.84 * storey, storey), scene.tint("cloth") * lit)
  floor, room = (grid.ravel() for grid in np.meshgrid(np.arange(1, storeys), np.arange(1.5, 11, 3.0)))
  x0, y0 = x + side * room, (floor + sill) * storey
  x1, y1 = x0 + side * 1.3, y0 + tall * storey
  scene.paint(quads((x0, y0, near), (x0, y1, near), (x1, y1, near), (x1, y0, near)), glass * 0.9)


def draw_garden(scene: Scene, side: int, front: float, near: float, far: float) -> None:
  """Trees, perhaps a house set back, behind a wall, a fence, a hedge or nothing."""
  rng = scene.rng
  if rng.random() < 0.4:
    draw_house(scene, side, front + rng.uniform(6, 12), near, far)
  for z in sorted(rng.uniform(near, far, rng.poisson(2)), reverse=True):
    if z > 4:
      draw_tree(scene, side * (front + rng.uniform(2, 7)), z, rng.uniform(4, 9))
  border = pick(rng, {"wall": 0.32, "fence": 0.38, "hedge": 0.18, "nothing": 0.12})
  if border == "wall":
    draw_wall(scene, side, front, near, far)
  elif border == "fence":
    draw_fence(scene, side * front, near, far, rng.uniform(1.1, 2.2))
  elif border == "hedge":
    hedge, top = scene.tones["foliage"] * rng.uniform(0.8, 1.1), rng.uniform(0.8, 1.8)
    scene.paint(facing(side * front, side * (front + 1), 0, top, near), hedge * 0.8, VEGETATION)
    scene.paint(upright(side * front, near, far, 0, top), hedge, VEGETATION)


def draw_wall(scene: Scene, side: int, front: float, near: float, far: float) -> None:
  """A garden wall with its courses of stone and a coping."""
  rng = scene.rng
  colour, top, x = scene.tint("stone"), rng.uniform(1.6, 3.2), side * front
  colour = colour * (0.8 if side == scene.sun else 1.0)
  scene.paint(facing(x, x + side * 0.4, 0, top, near), colour * 0.8, WALL)
  scene.paint(upright(x, near, far, 0, top), colour, WALL)
  y = np.arange(0.35, top - 0.2, 0.4)
  scene.paint(quads((x, y, near), (x, y + 0.05, near), (x, y + 0.05, far), (x, y, far)), colour * 0.72)
  scene.paint(upright(x, near, far, top - 0.18, top), colour * 1.2)


def draw_fence(scene: Scene, x: float, near: float, far: float, top: float) -> None:
  """Rails and posts; the label covers the gaps too."""
  colour = scene.tint("fence")
  scene.paint(upright(x, near, far, 0, top), SEE_THROUGH, FENCE)
  y = np.linspace(0.2, top - 0.15, max(3, round(top / 0.45)))
  scene.paint(quads((x, y, near), (x, y + 0.15, near), (x, y + 0.15, far), (x, y, far)), colour)
  z = np.arange(near, far, 0.9)
  scene.paint(quads((x, 0, z), (x, top, z), (x, top, z + 0.15), (x, 0, z + 0.15)), colour * 0.85)


def draw_tree(scene: Scene, x: float, z: float, height: float) -> None:
  """A trunk and a crown of clumps, lighter where the sun stands."""
  rng = scene.rng
  foliage = scene.tones["foliage"] * rng.uniform(0.8, 1.2)
  girth = 0.035 * height
  scene.paint(facing(x - girth, x + girth, 0, height * 0.6, z), scene.tones["bark"], VEGETATION)
  radius = height * rng.uniform(0.22, 0.32)
  clumps = 5 if z < 35 else 2
  clump = disc(0, 0, 0, radius * 0.75) + radius * 0.1 * rng.standard_normal((clumps, 12, 3)) * (1, 1, 0)
  middles = (x, height * 0.68, z) + radius * rng.uniform(-0.6, 0.6, (clumps, 1, 3)) * (1, 1, 0)
  for k, corners in enumerate(clump + middles):
    scene.paint(corners, foliage * (0.72 + 0.45 * k / clumps), VEGETATION)


# What stands or moves in the street.

Thing = tuple[float, Callable[[Scene], None]]


@dataclass(frozen=True)
class Part:
  """A side view, front at 0 and rear at 1 of the vehicle's length, heights in metres, drawn out across its width."""

  outline: tuple[Range, ...]
  glass: tuple[int, ...] = ()               # edges of the outline that are windows across the whole width
  windows: tuple[tuple[Range, ...], ...] = ()
  role: str = "body"                        # which of the vehicle's colours


@dataclass(frozen=True)
class Vehicle:
  """A kind of vehicle: what it is labelled, metres, paint, where the wheels are along its length, and its parts."""

  label: int
  length: float
  width: float
  paint: str
  wheels: tuple[float, ...]
  wheel: float
  parts: tuple[Part, ...]


def box(s0: float, s1: float, y0: float, y1: float) -> tuple[Range, ...]:
  """An upright rectangle of a side view."""
  return (s0, y0), (s0, y1), (s1, y1), (s1, y0)


VEHICLES = {
  "car": Vehicle(CAR, 4.3, 1.8, "car", (0.19, 0.80), 0.33, (Part(
    ((0, 0.3), (0, 0.72), (0.26, 0.92), (0.40, 1.45), (0.76, 1.45), (0.93, 0.98), (1, 0.9), (1, 0.3)), (2, 4),
    (((0.33, 0.95), (0.42, 1.36), (0.56, 1.36), (0.56, 0.95)),
     ((0.59, 0.95), (0.59, 1.36), (0.74, 1.36), (0.86, 0.95)))),)),
  "van": Vehicle(CAR, 4.9, 1.9, "car", (0.18, 0.82), 0.35, (Part(
    ((0, 0.35), (0, 0.95), (0.16, 1.15), (0.28, 1.95), (0.99, 1.95), (1, 1.1), (1, 0.35)), (2, 4),
    (((0.24, 1.15), (0.31, 1.8), (0.46, 1.8), (0.46, 1.15)),
     box(0.50, 0.72, 1.15, 1.8), box(0.75, 0.95, 1.15, 1.8))),)),
  "truck": Vehicle(TRUCK, 8.5, 2.5, "truck", (0.12, 0.68, 0.85), 0.5, (
    Part(((0, 0.4), (0, 1.5), (0.03, 2.7), (0.22, 2.8), (0.22, 0.4)), (1,), (box(0.05, 0.15, 1.5, 2.4),)),
    Part(box(0.25, 1, 0.75, 3.4), role="cargo"))),
  "bus": Vehicle(BUS, 11.0, 2.55, "bus", (0.22, 0.76), 0.5, (Part(
    ((0, 0.35), (0, 1.1), (0.02, 2.7), (0.02, 3.1), (1, 3.1), (1, 2.7), (1, 1.6), (1, 0.35)), (1, 5),
    tuple(box(0.04 + 0.12 * k, 0.14 + 0.12 * k, 1.3, 2.5) for k in range(8))),)),
  "train": Vehicle(TRAIN, 24.0, 2.5, "train", (), 0.4, (Part(
    ((0, 0.2), (0, 1.2), (0.05, 2.9), (0.07, 3.5), (0.93, 3.5), (0.95, 2.9), (1, 1.2), (1, 0.2)), (1, 5),
    tuple(box(0.09 + 0.085 * k, 0.16 + 0.085 * k, 1.4, 2.6) for k in range(10))),)),
}

VEHICLE_COLOURS = {
  "tyre": np.array([28.0, 28, 28]), "hub": np.array([140.0, 140, 140]), "plate": np.array([225.0, 225, 225]),
  "tail": np.array([215.0, 30, 25]), "head": np.array([255.0, 250, 220])}


def place_traffic(scene: Scene, lane: float, lanes: int) -> list[Thing]:
  """Vehicles and riders in every lane, each at some distance from the one ahead."""
  rng, domain = scene.rng, scene.domain
  things = []
  for k in range(lanes + 1):
    heading = 1 if k <= lanes // 2 else -1  # away from the camera, or towards it
    z = rng.uniform(8, 22) if k == 0 else rng.uniform(5, 25)
    while z < 70:
      name = pick(rng, {"car": 0.50, "van": 0.12, "truck": 0.16, "bus": 0.12, "train": 0.10 if k else 0.0})
      x = rng.normal(-lane * k, 0.15)
      things.append((z, partial(draw_vehicle, name=name, x=x, z=z, heading=heading)))
      z += VEHICLES[name].length + 3 + rng.exponential(domain.traffic)
  left, right = -lane * (lanes + 0.4), lane * 0.4
  for rate, motor in ((domain.cyclists, False), (domain.motorcyclists, True)):
    for _ in range(rng.poisson(rate)):
      z = 4 + rng.exponential(6)
      x = rng.choice((left, right)) + rng.normal(0, 0.4)
      things.append((z, partial(draw_two_wheeler, x=x, z=z, motor=motor, ridden=True, across=rng.random() < 0.35)))
  return things


def place_crossing(scene: Scene, kerbs: np.ndarray, crossing: float | None) -> list[Thing]:
  """Cars in the street that crosses, people on the zebra; `kerbs` [2] and `crossing` are those of `draw_ground`."""
  rng, things = scene.rng, []
  if not crossing:
    return things
  for _ in range(rng.poisson(0.8)):
    z, x = crossing + rng.choice((1.5, 5.5)), rng.uniform(-kerbs[0] - 4, kerbs[1] + 2)
    name = pick(rng, {"car": 0.6, "van": 0.2, "truck": 0.1, "bus": 0.1})
    things.append((z, partial(draw_vehicle, name=name, x=x, z=z, heading=int(rng.choice((-1, 1))), across=True)))
  for _ in range(rng.poisson(scene.domain.people * 0.3)):
    z = crossing - rng.uniform(1.5, 4)
    things.append((z, partial(draw_person, x=rng.uniform(-kerbs[0], kerbs[1]), z=z)))
  return things


def place_parked(scene: Scene, side: int, kerb: float, crossing: float | None) -> list[Thing]:
  """Cars along the kerb."""
  rng, things = scene.rng, []
  z = rng.uniform(4, 12)
  while z < 60:
    name = pick(rng, {"car": 0.75, "van": 0.2, "truck": 0.05})
    length, heading = VEHICLES[name].length, int(rng.choice((1, side)))
    if not crossing or z > crossing + 13 or z + length < crossing - 4:
      things.append((z, partial(draw_vehicle, name=name, x=side * (kerb - 1.1), z=z, heading=heading)))
    z += length + 0.8 + rng.exponential(6)
  return things


def place_pavement(scene: Scene, side: int, kerb: float, pavement: float) -> list[Thing]:
  """People, trees, posts, parked two-wheelers and railings of one pavement."""
  rng, domain = scene.rng, scene.domain
  things = []
  for _ in range(rng.poisson(domain.people / 2)):
    z, x = 4.5 + rng.exponential(7), side * (kerb + rng.uniform(0.4, pavement))
    for _ in range(rng.integers(1, 3)):
      things.append((z, partial(draw_person, x=x, z=z)))
      x, z = x + rng.choice((-0.6, 0.6)), z + rng.normal(0, 0.1)
  for _ in range(rng.poisson(domain.trees / 2)):
    z = rng.uniform(6, 60)
    things.append((z, partial(draw_tree, x=side * (kerb + 0.8), z=z, height=rng.uniform(4, 8))))
  for _ in range(rng.poisson(domain.posts / 2)):
    z = rng.uniform(5, 20)
    things.append((z, partial(draw_post, x=side * (kerb + 0.4), z=z, side=side)))
  for motor, rate in ((False, domain.cyclists), (True, domain.motorcyclists)):
    for _ in range(rng.poisson(rate / 2)):
      z = rng.uniform(4, 14)
      x, across = side * (kerb + rng.uniform(0.6, 1.4)), rng.random() < 0.7
      things.append((z, partial(draw_two_wheeler, x=x, z=z, motor=motor, ridden=False, across=across)))
  if rng.random() < domain.railings / 2:
    z = rng.uniform(4, 20)
    things.append((z, partial(draw_fence, x=side * (kerb + 0.2), near=z, far=z + rng.uniform(5, 15), top=1.0)))
  return things


@lru_cache
def vehicle_model(name: str, heading: int, near_side: int, across: bool) -> list[tuple[np.ndarray, str, float, bool]]:
  """A vehicle in its order of painting: polygons [corners, 3] in metres from its nearest middle, role of the colour,
  light, and whether it is labelled or a detail.
  """
  kind = VEHICLES[name]

  def place(s, y, width):
    """Along the length from the front 0..1, up in metres, across the width -1..1, to the world's axes."""
    s, y, width = np.broadcast_arrays(s, y, width)
    along, sideways = np.where(heading > 0, 1 - s, s) * kind.length, width * kind.width / 2
    return np.stack([along - kind.length / 2, y, sideways + kind.width / 2] if across else [sideways, y, along], -1)

  model = [(place([-0.02, -0.02, 1.02, 1.02], 0, [-1.1, 1.1, 1.1, -1.1]), "shadow", 1.0, False)]
  for part in sorted(kind.parts, key=lambda part: -place(part.outline[0][0], 0, 0)[2]):
    s, y = np.array(part.outline).T
    edges = []
    for k, ((s0, y0), (s1, y1)) in enumerate(itertools.pairwise(part.outline)):  # all but the floor
      role = "glass" if k in part.glass else part.role
      light = 1.0 if role == "glass" else 1.1 if abs(y1 - y0) < 0.3 else 0.85
      edges.append((place([s0, s1, s1, s0], [y0, y1, y1, y0], [-1, -1, 1, 1]), role, light, True))
    model += sorted(edges, key=lambda edge: -edge[0][:, 2].mean())
    model.append((place(s, y, near_side), part.role, 1.0, True))
    model += [(place(*np.array(window).T, near_side), "glass", 1.0, False) for window in part.windows]
  for wheel, (radius, role) in itertools.product(kind.wheels, ((kind.wheel, "tyre"), (0.5 * kind.wheel, "hub"))):
    rim = CIRCLE[::2] * radius
    model.append((place(wheel + rim[:, 0] / kind.length, kind.wheel + rim[:, 1], near_side), role, 1.0, True))
  if not across:
    end, lamp = (1.0, "tail") if heading > 0 else (0.0, "head")
    base = kind.parts[-1 if heading > 0 else 0].outline[0][1]
    for w in (-1, 1):
      lamps = place(end, base + np.array([0.25, 0.42, 0.42, 0.25]), [0.62 * w, 0.62 * w, 0.95 * w, 0.95 * w])
      tyres = place(end, [0, base, base, 0], [0.65 * w, 0.65 * w, 0.92 * w, 0.92 * w])
      model += [(lamps, lamp, 1.0, False), (tyres, "tyre", 1.0, True)]
    model.append((place(end, base + np.array([0.05, 0.17, 0.17, 0.05]), [-0.3, -0.3, 0.3, 0.3]), "plate", 1.0, False))
  return model


def draw_vehicle(scene: Scene, name: str, x: float, z: float, heading: int, across: bool = False) -> None:
  """A vehicle whose nearest point is z ahead and whose middle is at x; `heading` 1 goes away (or right, if across)."""
  kind, near_side = VEHICLES[name], -1 if across or x > 0 else 1
  light = 0.85 if near_side == scene.sun else 1.0
  body = scene.tint(kind.paint)
  colours = VEHICLE_COLOURS | {
    "body": body * light, "cargo": scene.tint(kind.paint) * light, "glass": scene.tint("glass") * 0.7,
    "shadow": scene.tones["asphalt"] * 0.45}
  shift = np.array([x, 0, z])
  for points, role, level, labelled in vehicle_model(name, heading, near_side, across):
    if labelled or z < 40:
      scene.paint(points + shift, colours[role] * level, kind.label if labelled else UNLABELLED)


def draw_person(scene: Scene, x: float, z: float) -> None:
  """Someone who stands or walks."""
  rng = scene.rng
  tall, stride = rng.uniform(1.5, 1.9), rng.uniform(0.02, 0.3)
  coat, trousers, skin = scene.tint("cloth"), scene.tint("cloth") * 0.6, scene.tint("skin")
  hip, neck = 0.48 * tall, 0.84 * tall
  scene.paint(tile(x - 0.3, x + 0.3, z - 0.15, z + 0.15), scene.tones["pavement"] * 0.55)
  for foot in (-stride, stride):
    scene.paint(stroke((x + foot, 0), (x + foot * 0.3, hip), 0.19, z), trousers, PERSON)
  for hand in (-0.3, 0.3):
    scene.paint(stroke((x + hand, hip), (x + hand * 0.65, neck - 0.06), 0.13, z), coat * 0.85, PERSON)
  scene.paint(stroke((x, hip - 0.1), (x, neck), 0.42, z), coat, PERSON)
  scene.paint(disc(x, 0.92 * tall, z, 0.13), skin, PERSON)
  scene.paint(disc(x, 0.95 * tall, z, 0.12)[:7], trousers * 0.5, PERSON)


def draw_two_wheeler(scene: Scene, x: float, z: float, motor: bool, ridden: bool, across: bool) -> None:
  """A bicycle or motorcycle seen from the side or from behind, with or without its rider."""
  rng = scene.rng
  label, colour, dark = (MOTORCYCLE if motor else BICYCLE), scene.tint("car"), np.full(3, 35.0)
  radius, thick = (0.33, 0.14) if motor else (0.35, 0.07)
  flip = rng.choice((-1, 1))

  def at(u: float, y: float) -> Range:
    return x + flip * u, y

  scene.paint(tile(x - 0.7 * across - 0.2, x + 0.7 * across + 0.2, z - 0.1, z + 0.1), scene.tones["asphalt"] * 0.5)
  if across:
    for wheel in (-0.58, 0.58):
      scene.paint(disc(*at(wheel, radius), z, radius), dark, label)
      scene.paint(disc(*at(wheel, radius), z, radius * (0.5 if motor else 0.78)), np.full(3, 120.0), label)
    if motor:
      body = [(-0.75, 0.75), (-0.1, 0.8), (0.25, 1.0), (0.5, 0.75), (0.3, 0.35), (-0.3, 0.3)]
      scene.paint([[*at(u, y), z] for u, y in body], colour, label)
    for start, end in (((-0.58, radius), (0, 0.35)), ((0, 0.35), (0.45, 0.9)), ((-0.15, 0.9), (0.4, 0.85)),
                       ((0, 0.35), (-0.18, 0.95)), ((0.58, radius), (0.42, 1.05)), ((0.3, 1.05), (0.5, 1.05))):
      scene.paint(stroke(at(*start), at(*end), thick, z), colour * 0.8, label)
    seat, chest, head = (-0.2, 0.9), (0.1, 1.45), (0.2, 1.66)
  else:
    scene.paint(facing(x - thick, x + thick, 0, 0.75, z), dark, label)
    if motor:
      scene.paint([[x - 0.22, 0.4, z], [x - 0.28, 0.9, z], [x + 0.28, 0.9, z], [x + 0.22, 0.4, z]], colour, label)
      scene.paint(facing(x - 0.1, x + 0.1, 0.7, 0.8, z), np.array([210.0, 30, 25]), label)
    scene.paint(stroke((x - 0.33, 1.0), (x + 0.33, 1.0), thick, z), dark, label)
    scene.paint(stroke((x, 0.6), (x, 1.0), thick * 1.5, z), colour, label)
    seat, chest, head = (0.0, 0.9), (0.0, 1.45), (0.0, 1.68)
  if ridden:
    coat, trousers = scene.tint("cloth"), scene.tint("cloth") * 0.6
    for pedal in (-0.12, 0.15):
      knee = (seat[0] + (0.35 if across else 1.2 * pedal), 0.7)
      scene.paint(stroke(at(*seat), at(*knee), 0.2, z), trousers, RIDER)
      scene.paint(stroke(at(*knee), at(pedal, 0.2), 0.15, z), trousers, RIDER)
    scene.paint(stroke(at(seat[0], seat[1] - 0.08), at(*chest), 0.34 if across else 0.44, z), coat, RIDER)
    for grip in (0.42,) if across else (-0.32, 0.32):
      scene.paint(stroke(at(chest[0], chest[1] - 0.08), at(grip, 1.05), 0.12, z), coat * 0.85, RIDER)
    scene.paint(disc(*at(*head), z, 0.15), scene.tint("car" if motor else "skin"), RIDER)


def draw_post(scene: Scene, x: float, z: float, side: int) -> None:
  """A pole that carries traffic lights, a sign or a lamp."""
  rng, metal = scene.rng, scene.tones["metal"]
  carries = pick(rng, {"lights": 0.38, "sign": 0.40, "lamp": 0.22})
  top = {"lights": 3.4, "sign": 2.9, "lamp": 6.5}[carries] + rng.uniform(-0.3, 0.3)
  scene.paint(facing(x - 0.14, x + 0.14, 0, top, z), metal, POLE)
  if carries == "lamp":
    scene.paint(stroke((x, top), (x - side * 1.6, top + 0.2), 0.12, z), metal, POLE)
    scene.paint(stroke((x - side * 1.2, top + 0.1), (x - side * 1.9, top + 0.2), 0.25, z), metal * 1.2, POLE)
  elif carries == "lights":
    arm = rng.choice((0.0, 2.2))
    if arm:
      top += 1.2
      scene.paint(facing(x - 0.14, x + 0.14, 0, top, z), metal, POLE)
      scene.paint(stroke((x, top - 0.2), (x - side * arm, top - 0.2), 0.12, z), metal, POLE)
    u, shining = x - side * arm, rng.choice(3, p=(0.45, 0.1, 0.45))
    scene.paint(facing(u - 0.30, u + 0.30, top - 1.3, top + 0.2, z), np.full(3, rng.uniform(18, 50)), LIGHT)
    for k, lamp in enumerate(((60.0, 240, 120), (255.0, 190, 40), (250.0, 40, 30))):
      scene.paint(disc(u, top - 1.05 + 0.48 * k, z, 0.2), np.array(lamp) * (1.0 if k == shining else 0.25))
  else:
    colour, shape, size = scene.tint("sign"), int(rng.integers(3)), rng.uniform(0.45, 0.65)
    corners, first = ((12, 0), (3, 6), (4, 3))[shape]  # round, triangle that stands, square that stands
    plate = np.roll(CIRCLE, -first, 0)[::24 // corners]
    scene.paint(plate * size + (x, top, z), colour, SIGN)
    scene.paint(plate * size * 0.62 + (x, top, z), colour * 0.8 if shape == 2 else np.full(3, 240.0), SIGN)


def draw_bonnet(scene: Scene) -> None:
  """The own car's bonnet, which nobody has to label."""
  rise, colour = scene.rng.uniform(0.04, 0.12), scene.tint("car") * 0.6
  for shrink, level in ((1.0, 0.7), (0.86, 1.0)):
    arc = (1.0, 1.01) - CIRCLE[:13, :2] * (0.95 * shrink, rise * shrink)
    scene.paint(scene.lift(arc, 1.0), colour * level, IGNORE)


# The picture's look.


@dataclass(frozen=True)
class Look:
  """Light, air and lens of one picture."""

  texture: float        # contrast of the grain of surfaces
  shadow: float         # how much light a cast shadow takes
  shade: float          # metres from the middle, on the sun's side, beyond which the houses shade the ground
  haze: float           # per metre
  air: Colour           # what the haze looks like
  gain: Colour          # white balance and exposure
  contrast: float
  gamma: float
  saturation: float
  vignette: float
  blur: float           # pixels at a height of 128
  noise: float          # grey levels


def draw_look(hardness: float, rng: np.random.Generator) -> Look:
  """A look between noon (0) and the worst light that the photo has (1)."""
  h = hardness
  warm = h * rng.uniform(0.10, 0.18)
  return Look(
    texture=h * rng.uniform(0.4, 0.8), shadow=h * rng.uniform(0.1, 0.4), shade=rng.uniform(-5, 6),
    haze=h * rng.uniform(0.004, 0.010), air=np.array([215, 200, 180]) * rng.uniform(0.85, 1.05),
    gain=np.array([1 + warm, 1, 1 - warm]) * (1 - h * rng.uniform(0.32, 0.44)),
    contrast=1 - h * rng.uniform(0.22, 0.37), gamma=np.exp(h * rng.uniform(0.0, 0.25)),
    saturation=1 - h * rng.uniform(0.3, 0.5), vignette=h * rng.uniform(0.2, 0.5), blur=h * rng.uniform(0.2, 0.5),
    noise=h * rng.uniform(1.5, 3))


_GRAINY = {ROAD: 0.10, SIDEWALK: 0.12, BUILDING: 0.08, WALL: 0.16, FENCE: 0.10, VEGETATION: 0.28, TERRAIN: 0.22,
           SKY: 0.02, PERSON: 0.10, RIDER: 0.10}
GRAIN = np.array([_GRAINY.get(label, 0.04) for label in range(256)], np.float32)
GROUND = np.isin(np.arange(256), (ROAD, SIDEWALK, TERRAIN))


def white_noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
  """Uniform noise of mean 0 and variance 1, float32 of that shape: a third of the time that normal noise takes."""
  return (rng.random(shape, np.float32) - np.float32(0.5)) * np.float32(math.sqrt(12))


def develop(scene: Scene, look: Look, size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """Exposes a scene and turns the flat painting into a picture: grain, shadow, haze, tone, lens and sensor, in order.

  Returns the image uint8 [height, width, 3] and its label uint8 [height, width].
  """
  image, label, depth = scene.expose(size)
  height, width = size
  rows = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
  columns = ((np.arange(width, dtype=np.float32) + 0.5) / width * 2)[None]
  z = np.float32(scene.focal * scene.height) / np.maximum(rows - np.float32(scene.horizon), np.float32(1e-3))
  x = (columns - np.float32(scene.centre)) * z / np.float32(scene.focal)
  ground = GROUND[label]
  depth = np.where(ground, depth_byte(z), depth)

  clumps = cv2.resize(white_noise((24, 48), rng), (width, height), interpolation=cv2.INTER_LINEAR)
  light = 1 + look.texture * GRAIN[label] * (clumps + white_noise(size, rng))
  light -= np.float32(look.shadow) * (ground & (x * scene.sun > look.shade))
  clear = np.exp(-look.haze * depth_metres(np.arange(256))).astype(np.float32)
  clear[0] = 0.3 + 0.7 * clear[0]  # the sky
  clear = clear[depth][..., None]
  picture = image * (light[..., None] * clear) + look.air.astype(np.float32) * (1 - clear)

  mix = look.contrast * (look.saturation * np.eye(3) + (1 - look.saturation) / 3)
  picture = cv2.transform(picture, np.column_stack([mix, np.full(3, 110 * (1 - look.contrast))]))
  levels = (np.arange(256) / 255) ** look.gamma
  curve = (255 * levels[:, None] * look.gain).astype(np.float32)
  picture = cv2.LUT(cv2.convertScaleAbs(np.maximum(picture, 0)), curve[None])
  picture *= (1 - 2 * look.vignette * ((rows - 0.5) ** 2 + (columns / 2 - 0.5) ** 2))[..., None]
  if look.blur:
    picture = cv2.GaussianBlur(picture, (0, 0), look.blur * height / 128)
  if look.noise:
    picture += look.noise * white_noise(picture.shape, rng)
  return cv2.convertScaleAbs(np.maximum(picture, 0)), label
