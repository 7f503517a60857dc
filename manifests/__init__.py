"""What the cluster needs beside Kubeflow, as kustomize sources, their rendering, and checks of any Kubernetes YAML."""
