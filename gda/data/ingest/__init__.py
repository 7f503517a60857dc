"""From a source to a snapshot's images, to a pool of further ones, or to a robustness set."""
