"""What docstrings of public functions have to say: what it does, shapes of arrays, errors, and where maths comes from."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for part in ("jax_uda", "data_prep", "configs") for path in (ROOT / part).rglob("*.py"))
# Modules of formulas: each says in its own words or a function's whose they are.
FORMULAS = ("priors", "pseudo_labels", "mining", "agreement", "losses", "inference", "metrics", "methods/", "models/")
PAPER = re.compile(r"\b(eqs?\.|et al\.|20[012]\d|sections?|algorithm|papers?|code|torchvision|Cityscapes|MXNet)(?!\w)")
ARRAY = re.compile(r"\b(ndarray|Array|ArrayLike)\b")
SHAPE = re.compile(r"\[[^\]]*\]|scalar|shape|number|as .* (gives|wants|has) them")


def public(tree: ast.Module):
  """Functions, classes and methods that a user may call: (name, node, the docstring of its class, which may say it)."""
  for node in tree.body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
      yield node.name, node, ""
      if isinstance(node, ast.ClassDef):
        for inner in node.body:
          if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
            yield f"{node.name}.{inner.name}", inner, ast.get_docstring(node) or ""


def raised(function: ast.FunctionDef) -> bool:
  """Whether its own body raises a UserError."""
  calls = [node.exc for node in ast.walk(function) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
  return any(isinstance(call.func, ast.Name) and call.func.id == "UserError" for call in calls)


def lacking(path: Path) -> list[str]:
  """What the docstrings of a file do not say."""
  tree, found = ast.parse(path.read_text()), []
  name = str(path.relative_to(ROOT)).removesuffix(".py")
  if not ast.get_docstring(tree):
    found.append(f"{name}: no docstring")
  for what, node, around in public(tree):
    words = ast.get_docstring(node)
    if not words:
      found.append(f"{name}.{what}: no docstring")
    elif isinstance(node, ast.FunctionDef):
      words += around
      arguments = [one for one in (*node.args.args, *node.args.kwonlyargs) if one.arg not in ("key", "step")]
      annotations = [argument.annotation for argument in arguments] + [node.returns]
      arrays = any(ARRAY.search(ast.unparse(annotation)) for annotation in annotations if annotation is not None)
      if arrays and not SHAPE.search(words):
        found.append(f"{name}.{what}: takes or gives arrays, of what shape?")
      if node.name != "main" and raised(node) and not re.search(r"[Rr]ais|[Rr]efuse|[Ee]rror", words):
        found.append(f"{name}.{what}: raises UserError, when?")
  said = [ast.get_docstring(node) or "" for node in (tree, *(node for _, node, _ in public(tree)))]
  if any(part in name for part in FORMULAS) and path.stem != "__init__" and not PAPER.search("\n".join(said)):
    found.append(f"{name}: whose formulas are these?")
  return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_say_what_one_needs_to_know(path):
  assert lacking(path) == []


def test_the_check_finds_what_is_missing(tmp_path, monkeypatch):
  monkeypatch.setitem(globals(), "ROOT", tmp_path)
  (tmp_path / "losses.py").write_text(
    '"""Maths."""\ndef a(x: Array):\n  """Does."""\n  raise UserError("no")\ndef b(): pass\ndef _c(x: Array): pass\n'
  )
  assert [line.partition(": ")[2] for line in lacking(tmp_path / "losses.py")] == [
    "takes or gives arrays, of what shape?", "raises UserError, when?", "no docstring", "whose formulas are these?",
  ]  # fmt: skip
