"""Writers that are killed at random moments, and what their stores hold afterwards."""
