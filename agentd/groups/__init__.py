"""This node's part of every run: admission, one supervisor for each worker group, the journal."""
