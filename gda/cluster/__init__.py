"""Work on a cluster beside the pipeline's own pods: what is asked of Kubernetes (pure), and submitting, adopting and watching it."""
