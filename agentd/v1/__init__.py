"""Generated messages and stubs of the agentd.v1 API. Made by `make proto`, never by hand."""
