"""One thin component for each step of the job: typed strings in, references and pages out. All logic is in `gda.steps`."""

from kfp import dsl

# What steps run in until a pipeline is compiled for an image of one's own (`python -m pipelines compile --image`).
IMAGE = "gda.invalid/gda@sha256:" + 64 * "0"

# Of a step that has a job do its work: what the task is given is the job's pods'; the step's own pod only needs the volume and the
# variables, and no accelerator.
OF_THE_JOB = [
    dsl.TaskConfigField.RESOURCES,
    dsl.TaskConfigField.KUBERNETES_NODE_SELECTOR,
    dsl.TaskConfigField.KUBERNETES_TOLERATIONS,
    dsl.TaskConfigField.KUBERNETES_AFFINITY,
    dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.ENV, apply_to_task=True),
    dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.KUBERNETES_VOLUMES, apply_to_task=True),
]
