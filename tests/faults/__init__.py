"""Power loss, failing calls and damaged bytes: what a store does about each."""
