"""A whole cluster in one thread: seeded time, network, disks and crashes around the real logic."""
