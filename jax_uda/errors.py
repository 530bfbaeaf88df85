"""The one kind of error that a user can mend."""


class UserError(Exception):
  """What is wrong, where, and what to do, in one line; `main` prints it as `error: …` and exits with 2."""
