"""Building blocks of a page that is one file: legible on a phone, in greyscale and without a network.

Texts are escaped here and nowhere else; what takes HTML says so.
"""

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.figure import Figure
from PIL import Image

from jax_uda.data.label_spaces import IGNORE, LabelSpace, colorize
from jax_uda.errors import UserError

PICTURE_WIDTH = 640  # pixels at most, so that the one file stays of a size to send around

CSS = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: #fbfbfa; color: #1b1b1b;
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .85rem; color: #444; }
img { display: block; max-width: 100%; height: auto; }
.facts { display: flex; flex-wrap: wrap; gap: .3rem 2rem; margin: 0; }
.facts dt { font-size: .85rem; color: #444; }
.facts dd { margin: 0; font-size: 1.25rem; font-weight: 600; }
.charts { columns: 2 30rem; column-gap: 1.5rem; }
.charts figure { break-inside: avoid; background: #fff; border: 1px solid #e2e2e2; border-radius: 6px; padding: .8rem;
  margin-bottom: 1.5rem; }
.charts figcaption { font-size: 1rem; font-weight: 600; color: inherit; margin-bottom: .5rem; }
.charts img { margin: auto; }
.row { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fit, minmax(min(45%, 13rem), 1fr));
  margin-bottom: 1.2rem; }
.row img { width: 100%; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; padding: 0; font-size: .9rem; }
.legend span { display: inline-block; width: 1.1em; height: 1.1em; margin-right: .35em; border: 1px solid #555;
  vertical-align: -.2em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid #e2e2e2; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.words th, .words td { text-align: left; }
.words td + td { white-space: normal; min-width: 8rem; }
pre { overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; }
"""


def page(title: str, parts: Iterable[str]) -> bytes:
  """A whole page, UTF-8, of parts that are HTML already."""
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
    f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n{''.join(parts)}</body>\n</html>\n"
  ).encode()


def frame(path: epath.PathLike, height: int = 900) -> str:
  """A page, read from its file, as a frame of so many pixels: what a notebook can show without touching its own styles."""
  content = html.escape(epath.Path(path).read_text())
  return f'<iframe srcdoc="{content}" style="width: 100%; height: {height}px; border: 1px solid #ccc"></iframe>'


def heading(text: str, level: int = 2) -> str:
  """A heading; the page's own has level 1."""
  return f"<h{level}>{html.escape(text)}</h{level}>\n"


def paragraph(text: str) -> str:
  """A paragraph."""
  return f"<p>{html.escape(text)}</p>\n"


def facts(values: Mapping[str, str | None]) -> str:
  """What is to be seen first, by name; those that are None or empty are left out."""
  items = "".join(
    f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>\n" for name, value in values.items() if value
  )
  return f'<dl class="facts">\n{items}</dl>\n'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: bool = False) -> str:
  """A table, which scrolls by itself where the window is too narrow; `words` breaks lines in all columns but the first."""
  lines = ["".join(f"<th>{html.escape(text)}</th>" for text in head)]
  lines += ["".join(f"<td>{html.escape(text)}</td>" for text in row) for row in rows]
  inner = "".join(f"<tr>{line}</tr>\n" for line in lines)
  return f'<div class="scroll{" words" if words else ""}"><table>\n{inner}</table></div>\n'


def items(lines: Iterable[str]) -> str:
  """A list, an item a line."""
  return f"<ul>\n{''.join(f'<li>{html.escape(line)}</li>{chr(10)}' for line in lines)}</ul>\n"


def folded(summary: str, inner: str) -> str:
  """Something that opens at a click; `inner` is HTML already."""
  return f"<details><summary>{html.escape(summary)}</summary>\n{inner}</details>\n"


def verbatim(text: str) -> str:
  """Text in which every space counts."""
  return f"<pre>{html.escape(text)}</pre>\n"


def charts(title: str, figures: Sequence[str]) -> str:
  """Figures beside each other, as many as fit; nothing where there are none."""
  return f'{heading(title)}<div class="charts">\n{"".join(figures)}</div>\n' if figures else ""


def row(figures: Iterable[str]) -> str:
  """Pictures of one size beside each other; on a phone two of them."""
  return f'<div class="row">\n{"".join(figures)}</div>\n'


def figure(caption: str, alt: str, picture: Figure | Image.Image | bytes) -> str:
  """A drawing, a picture or a PNG, with the words over it and those for people who do not see it."""
  if isinstance(picture, bytes):
    png = picture
  else:
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
      picture.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    else:
      picture.save(buffer, format="png", optimize=True)
    png = buffer.getvalue()
  source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
  return (
    f'<figure><figcaption>{html.escape(caption)}</figcaption><img alt="{html.escape(alt)}" src="{source}"></figure>\n'
  )


def picture(caption: str, path: epath.Path, space: LabelSpace | None = None) -> str:
  """The figure of an image file, or of a label map in the colours of `space`; raises `UserError` if it is none."""
  opened = open_picture(path)
  if space is not None:
    opened = Image.fromarray(colorize(np.asarray(opened), space))
  return figure(caption, f"{caption}, {path.stem}", opened)


def open_picture(path: epath.Path) -> Image.Image:
  """A picture no wider than `PICTURE_WIDTH`, train ids as they are; raises `UserError` if it cannot be decoded."""
  try:
    found = Image.open(io.BytesIO(path.read_bytes()))
    labels = found.mode in ("L", "P")
    found = found if labels else found.convert("RGB")
    height = round(found.height * PICTURE_WIDTH / found.width)
    resampling = Image.Resampling.NEAREST if labels else Image.Resampling.LANCZOS
    return found.resize((PICTURE_WIDTH, height), resampling) if found.width > PICTURE_WIDTH else found
  except OSError:
    raise UserError(f"not a picture, {path}, delete it and make the report again") from None


def names(folder: epath.Path) -> list[str]:
  """The ids of all PNGs in a folder and the folders in it."""
  paths = sorted([*folder.glob("*.png"), *folder.glob("*/*.png")])
  return [str(path.relative_to(folder).with_suffix("")) for path in paths]


def said(value: Any) -> str:
  """A config's value as text."""
  return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def legend(space: LabelSpace) -> str:
  """The colours of a label space."""
  ids = np.array([[*range(len(space.classes)), IGNORE]], np.uint8)
  colors = ["#" + bytes(color.tolist()).hex() for color in colorize(ids, space)[0]]
  entries = [
    f'<li><span style="background:{color}"></span>{html.escape(name)}</li>'
    for color, name in zip(colors, [*space.classes, "ignored or not selected"], strict=True)
  ]
  return f'<ul class="legend">{"".join(entries)}</ul>\n'


def duration(seconds: float | None) -> str:
  """Seconds as a person says it, "–" where there are none."""
  if seconds is None:
    return "–"
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
