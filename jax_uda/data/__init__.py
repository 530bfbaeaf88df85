"""Label spaces, data sources and the input pipeline."""
