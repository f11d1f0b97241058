"""The one exception of a mistake that the user can repair."""


class UserError(ValueError):
    """Names the flag, file, field or layer, what came and what is allowed; printed without a stack trace."""
