"""The layer measured against its peers: `python -m gatkernels.bench`."""
