"""One thin component for each step of the job: typed strings in, references and pages out. All logic is in `gda.steps`."""

# What steps run in until a pipeline is compiled for an image of one's own (`python -m pipelines compile --image`).
IMAGE = "gda.invalid/gda@sha256:" + 64 * "0"
