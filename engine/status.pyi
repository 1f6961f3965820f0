"""Native status codes become exceptions here, and nowhere else: nothing of it is for Python."""
