"""One frozen language model, many tasks, each task a file of a few kilobytes."""
