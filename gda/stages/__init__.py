"""The stages of the job, one module each, with a run that takes a configuration and paths and returns an outcome."""
