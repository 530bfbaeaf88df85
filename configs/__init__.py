"""One file a setting; each one's docstring says what it is for, how to run it and what to expect."""
