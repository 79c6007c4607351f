"""One frozen model answers for every task over HTTP."""
