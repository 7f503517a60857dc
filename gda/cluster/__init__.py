"""Work on a cluster in addition to the pipeline's own pods: specifications of jobs (pure), and submitting, adopting and watching them."""
