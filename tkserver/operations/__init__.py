"""What an operator can do: each action once, for the command line and for the server. Everything here blocks."""
