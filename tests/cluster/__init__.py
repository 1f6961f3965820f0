"""Tests with real processes, sockets and files: the command, nodes, and labs of three regions."""
