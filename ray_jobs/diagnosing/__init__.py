"""What ``doctor`` looks at: this machine, every node of the cluster, the stores, and what each finding means."""
