"""The arms of a comparison: their requirements, their training data, and the request to train one."""
