"""The Everwrite server: Redis protocol, HTTP and replication around the engine."""
