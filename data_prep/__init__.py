"""Raw downloads into TFDS ArrayRecord, one module a data set: `python -m data_prep.<name> --help`."""
