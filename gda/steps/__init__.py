"""The steps of the job, each run by itself as a pipeline runs it: references in, references out, data on a shared volume."""
