"""The client and the parts that keep it current. Users import `Client` from `flagkit`."""
