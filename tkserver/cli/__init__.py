"""``tkserver``: the operator's command line. Everything here blocks."""
