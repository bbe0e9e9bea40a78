"""A world of moving shapes, its benchmarks, and models small enough to learn it on two CPU cores."""
