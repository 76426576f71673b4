"""The wire contract, pure: bytes in, values and refusals out.

Nothing here knows a reactor, a database or a clock; what depends on the time takes it as an argument.
"""
