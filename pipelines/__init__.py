"""The job as pipelines of Kubeflow: what can be run from its user interface, compiled to files that are checked in."""
