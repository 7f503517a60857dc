"""What the cluster needs in addition to Kubeflow, as kustomize sources, their rendering, and checks of any Kubernetes YAML."""
