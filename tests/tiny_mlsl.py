"""MLSL, tiny, as a config file: for tests that start processes."""

from tests.conftest import tiny


def get_config():
  return tiny("mlsl")
