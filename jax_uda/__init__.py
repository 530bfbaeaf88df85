"""Unsupervised domain adaptation of semantic segmentation in JAX."""

import os

# Of a broken image OpenCV would print lines of its own beside the one that we print.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
