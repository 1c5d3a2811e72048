"""See a model: tables, costs, pictures, and what went wrong; works from shapes alone."""
