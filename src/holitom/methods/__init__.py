"""The reduction methods, one file per paper, both stages of it together. Each stage is a frozen dataclass; none knows a
model library."""
