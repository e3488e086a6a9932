"""The one exception that users meet: something they can mend."""


class UserError(Exception):
    """Bad input. The message is one line that names the key or file, its value and the remedy."""
