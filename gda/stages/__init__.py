"""The stages of the workflow, one module each; each `run` takes a configuration and paths and returns an outcome."""
