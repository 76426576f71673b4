"""The command ``tkserver``: parses options, calls operations, and prints results. Everything here blocks."""
