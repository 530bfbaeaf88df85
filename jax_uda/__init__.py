"""Unsupervised domain adaptation of semantic segmentation in JAX."""
