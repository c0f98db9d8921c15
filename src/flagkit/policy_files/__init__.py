"""Read, check and write policy files. The parts for YAML need the extra `cli`."""
