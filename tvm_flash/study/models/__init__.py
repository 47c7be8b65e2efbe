"""Cost models: the data set they learn from, and how well they order configs."""
