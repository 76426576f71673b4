"""What the server can do, and how that compares with what its parts could do by themselves: ``python -m bench``."""
