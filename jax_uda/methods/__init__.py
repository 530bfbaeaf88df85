"""One file a method; `config.method` is the name of the file."""
