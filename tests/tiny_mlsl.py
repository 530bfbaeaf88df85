"""MLSL, tiny, as a config file: for tests that start processes."""

from tests.tiny import tiny


def get_config():
  config = tiny("mlsl")
  config.rounds.target_share = 0.6  # three of five images: which ones has to outlive the process
  return config
