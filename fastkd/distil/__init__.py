"""What a student learns from a teacher: tensors in, a scalar out."""
