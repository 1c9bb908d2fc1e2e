"""The study of the method on one model: what is measured, what the numbers say, and how they are told."""
