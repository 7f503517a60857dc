"""Files and folders that appear whole or not at all: shards, manifests, published outputs, locks."""
