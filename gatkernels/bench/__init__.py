"""GAT and GATv2 layers measured against their peers: `gatkernels bench`."""
